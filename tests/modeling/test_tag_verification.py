"""Tags that no place of the picture shows fade; no invented tag was ever pointed out in training."""

import pytest
import torch
from tiny_models import Sample, batch_of, tiny_config, tiny_model

from poise.modeling.tag_statistics import WORD_DIRECTIONS, tag_words
from poise.modeling.tag_verification import TagVerification
from poise.modeling.typicality import Agreement

pytestmark = pytest.mark.numerics

COMMA, CLS = 1, 2
# Ten colours and ten shapes; a tag is a colour and a shape, two tokens.
COLORS, SHAPES, DIM, PLACES = range(10, 20), range(30, 40), 40, 9
LOOKS = torch.randn(50, DIM, generator=torch.Generator().manual_seed(0))


def pictures_of(things, seed):
    """Patch features [N, P, DIM] of pictures with a (colour, shape) in each of the first places, the rest is noise."""
    patches = 0.3 * torch.randn(len(things), PLACES, DIM, generator=torch.Generator().manual_seed(seed))
    for row, objects in enumerate(things):
        for place, (color, shape) in enumerate(objects):
            patches[row, place] += LOOKS[color] + LOOKS[shape]
    return patches


def lines_of(tags):
    """Ids and mask [N, L] of lines such as "red square, blue star" behind a special token."""
    rows = [[CLS, *[token for tag in row for token in (*tag, COMMA)][:-1]] for row in tags]
    length = max(map(len, rows))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    mask = torch.tensor([[True] * len(row) + [False] * (length - len(row)) for row in rows])
    return ids, mask


def drawn(count, seed):
    """Three things a picture, no colour and no shape twice."""
    generator = torch.Generator().manual_seed(seed)
    pick = lambda of: [of[i] for i in torch.randperm(len(of), generator=generator)[:3]]  # noqa: E731
    return [list(zip(pick(COLORS), pick(SHAPES), strict=True)) for _ in range(count)]


@pytest.fixture(scope="module")
def fitted():
    """Verification and joint statistics after 1,280 pictures, of whose tags one in ten is another picture's."""
    joint, verification = Agreement(DIM, WORD_DIRECTIONS, 6.0, 0.99), TagVerification(DIM, [COMMA, CLS], 6.0)
    verification.train()
    for seed in range(20):
        things, others = drawn(64, seed), drawn(64, 1000 + seed)
        tags = [
            [*row, other[0]] if i % 3 == 0 else row for i, (row, other) in enumerate(zip(things, others, strict=True))
        ]
        patches, (ids, mask) = pictures_of(things, seed), lines_of(tags)
        verification.observe(joint, patches, ids, mask)
        joint.observe(torch.cat([patches.mean(1), tag_words(ids, mask, mask.float())], dim=-1))
    return verification.eval()


SOUND = torch.ones(40)


def test_what_no_place_shows_fades_and_what_one_shows_stays(fitted):
    things = drawn(40, 77)
    # The colour of one thing with the shape of another: both words are in the picture, but nowhere together.
    tags = [[a, (b[0], c[1]), b] for a, b, c in things]
    kept = fitted(pictures_of(things, 77), *lines_of(tags), SOUND)  # (N, L)
    assert (kept[:, [0, 3, 6]] == 1).all(), "special tokens and commas are no tags"
    assert kept[:, [1, 2, 7, 8]].median(0).values.min() > 0.9
    assert kept[:, [4, 5]].median(0).values.max() < 0.1
    assert torch.equal(kept[:, 4], kept[:, 5]), "a tag fades as a whole"


def test_a_picture_that_is_not_believed_denies_nothing(fitted):
    things = drawn(40, 78)
    tags = [[a, (b[0], c[1])] for a, b, c in things]
    patches, lines = pictures_of(things, 78), lines_of(tags)
    assert (fitted(patches, *lines, 0 * SOUND) == 1).all()
    half = fitted(patches, *lines, 0.5 * SOUND)[:, 4]
    assert half.median() == pytest.approx(0.5, abs=0.1)


def test_a_picture_that_shows_none_of_the_tags_denies_none(fitted):
    """Another picture's tags: one of the two is wrong as a whole, and the picture may be the one."""
    things = drawn(40, 79)
    foreign = [
        [(c, s) for c in COLORS for s in SHAPES if all(c != o[0] and s != o[1] for o in row)][:2] for row in things
    ]
    assert fitted(pictures_of(things, 79), *lines_of(foreign), SOUND).median() > 0.9


def test_padding_and_company_change_nothing(fitted):
    things = drawn(3, 80)
    tags = [[things[0][0]], [things[1][0], (things[1][1][0], things[1][2][1])], things[2]]
    patches, (ids, mask) = pictures_of(things, 80), lines_of(tags)
    together = fitted(patches, ids, mask, SOUND[:3])
    for row in range(3):
        real = mask[row]
        for side in ("right", "left"):
            alone_ids, alone_mask = ids[row][real][None], real[real][None]
            pads = (0, 4) if side == "right" else (4, 0)
            alone_ids = torch.nn.functional.pad(alone_ids, pads)
            alone_mask = torch.nn.functional.pad(alone_mask, pads)
            alone = fitted(patches[row : row + 1], alone_ids, alone_mask, SOUND[:1])[alone_mask]
            assert torch.allclose(alone, together[row][real], atol=1e-5)


def test_nothing_is_denied_before_enough_was_seen():
    verification = TagVerification(DIM, [COMMA, CLS], 6.0).eval()
    things = drawn(40, 81)
    assert (verification(pictures_of(things, 81), *lines_of([[row[0]] for row in things]), SOUND) == 1).all()


def test_in_a_model_it_observes_in_training_and_fades_at_inference(tmp_path):
    model = tiny_model("llama", router_type="reliability", tag_verification=True)
    samples = [Sample(pictures=(i,)) for i in range(100)]
    model.train()
    for _ in range(3):
        model(**batch_of(model, samples, answers=True, labels=True))
    verification = model.model.router.tag_verification
    assert verification.ready and verification.fitted_count > 0
    batch = batch_of(model, samples[:8], answers=True, labels=True)
    seen = {}
    own = model.model.soft_prompt.forward
    model.model.soft_prompt.forward = lambda *args: seen.update(scores=args[4]) or own(*args)
    with torch.no_grad():
        model(**batch)
        assert torch.equal(seen["scores"], batch["tag_scores"]), "training reads the scores as they are"
        model.eval()
        model.model.router.tag_verification.forward = lambda patches, ids, mask, image: 0.5 * mask
        model(**batch)
        assert torch.equal(seen["scores"], 0.5 * batch["tag_scores"])
        pictures_alone = {name: value for name, value in batch.items() if not name.startswith("tag_")}
        model(**pictures_alone)
    del model.model.router.tag_verification.forward, model.model.soft_prompt.forward
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).model.router.tag_verification
    for name, buffer in verification.named_buffers():
        assert torch.equal(buffer, again.get_buffer(name)), name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"soft_prompt_type": "static"}, "reads none.*soft_prompt_type='dynamic'"),
        ({"tag_score_encoding": "embedding"}, "tag_score_encoding='attention_bias'"),
    ],
)
def test_settings_that_contradict_it_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**{"router_type": "reliability", "tag_verification": True, **fields})
    assert not tiny_config(**{"router_type": "gate", "tag_verification": True, **fields}).verifies_tags
