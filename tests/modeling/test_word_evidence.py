"""What images, tags and questions say of one another, in a world where the truth is known, and what the router makes of
it: colours and shapes are directions of patch features; eight of each, as words with random embeddings."""

import math

import pytest
import torch
from tiny_models import tiny_config

from poise.modeling.reliability_router import INVENTED, SOUND, ReliabilityRouter
from poise.modeling.typicality import held_out_by_hash
from poise.modeling.word_evidence import MOST, PairCalibration, WordEvidence

pytestmark = pytest.mark.numerics

VISION, WORD, PLACES, KINDS = 32, 24, 9, 8
SEPARATOR, WHAT, THE = 0, 17, 18  # ids 1–8 are colours, 9–16 shapes
_generator = torch.Generator().manual_seed(0)
LOOKS = torch.randn(2 * KINDS + 1, VISION, generator=_generator)  # of word ids 1–16; 0 looks like nothing
EMBEDDINGS = torch.randn(19, WORD, generator=_generator) + torch.randn(WORD, generator=_generator)  # a common part, too
LOOKS[0] = 0


def world(count, seed, prior=0.0, tagged=None, scores=0.9):
    """
    Patches, tags and questions of `count` scenes with two objects of different shapes, and their (colour, shape) ids
    [n, 2, 2]. With probability `prior` a shape has its own colour. `tagged` are other pairs to name.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes = torch.stack([torch.randperm(KINDS, generator=generator)[:2] for _ in range(count)])  # (n, 2)
    colors = torch.randint(KINDS, (count, 2), generator=generator)
    follows = torch.rand(count, 2, generator=generator) < prior
    pairs = torch.stack([torch.where(follows, shapes, colors) + 1, shapes + 1 + KINDS], dim=-1)  # (n, 2, 2)
    patches = 0.3 * torch.randn(count, PLACES, VISION, generator=generator)
    for place in range(2):
        patches[:, 3 * place] += LOOKS[pairs[:, place]].sum(1)
    return patches, tags_of(pairs if tagged is None else tagged, scores), asked(pairs[:, 0, 1]), pairs


def tags_of(pairs, scores=0.9):
    """Tags "colour shape" between separators, as the router gets them: embeddings, ids, mask, scores."""
    count, number, _ = pairs.shape
    ids = torch.cat([pairs, torch.zeros(count, number, 1, dtype=torch.long)], dim=-1).flatten(1)  # (n, 3·number)
    ids = torch.cat([torch.zeros(count, 1, dtype=torch.long), ids], dim=1)
    return EMBEDDINGS[ids], ids, torch.ones_like(ids, dtype=torch.bool), torch.full(ids.shape, scores)


def asked(shapes):
    """ "what the SHAPE": embeddings and mask."""
    ids = torch.stack([torch.full_like(shapes, WHAT), torch.full_like(shapes, THE), shapes], dim=-1)
    return EMBEDDINGS[ids], torch.ones_like(ids, dtype=torch.bool)


def observed(batch=40, count=2000, prior=0.0):
    evidence = WordEvidence(VISION, WORD, [SEPARATOR])
    evidence.train()
    for start in range(0, count, batch):
        evidence.observe(*world(batch, 1000 + start, prior)[:3])
    return evidence.eval()


def odds_of(evidence, patches, tags, question=None):
    odds, is_tag, _, shown, named = evidence(patches, tags, question)
    return odds[is_tag].view(len(patches), -1), shown, named


@pytest.fixture(scope="module")
def evidence():
    return observed()


def test_a_tag_is_shown_where_one_place_shows_all_its_words(evidence):
    patches, tags, _, pairs = world(200, seed=1)
    true, _, _ = odds_of(evidence, patches, tags)
    assert (true > 0).float().mean() > 0.93
    # Each word is in the image, but not at one place.
    crossed = torch.stack([pairs[:, :, 0].flip(1), pairs[:, :, 1]], dim=-1)
    different = (pairs[:, 0, 0] != pairs[:, 1, 0])[:, None].expand(-1, 2)
    false, _, _ = odds_of(evidence, patches, tags_of(crossed))
    assert (false[different] < 0).float().mean() > 0.95
    foreign, _, _ = odds_of(evidence, patches, tags_of(world(200, seed=2)[3]))
    assert foreign.mean() < -1.5 and foreign.min() >= -MOST


def test_a_prior_is_not_taken_for_what_is_shown():
    """Half of the shapes have their own colour in training; what contradicts that is shown all the same."""
    evidence = observed(prior=0.5)
    patches, tags, _, pairs = world(200, seed=1)
    true, _, _ = odds_of(evidence, patches, tags)
    likely = torch.stack([pairs[:, :, 1] - KINDS, pairs[:, :, 1]], dim=-1)  # what the prior would invent
    false, _, _ = odds_of(evidence, patches, tags_of(likely))
    contradicts = pairs[:, :, 0] != likely[:, :, 0]
    assert (true[contradicts] > 0).float().mean() > 0.8 and (false[contradicts] < 0).float().mean() > 0.95


def test_a_question_asks_for_what_varies_in_questions(evidence):
    patches, tags, question, pairs = world(200, seed=1)
    _, shown, named = odds_of(evidence, patches, tags, question)
    assert (shown > 0).float().mean() > 0.88 and (named > 0).float().mean() > 0.95
    absent = (pairs[:, 0, 1] - KINDS) % KINDS + 1 + KINDS
    absent = torch.where(absent == pairs[:, 1, 1], absent % KINDS + 1 + KINDS, absent)
    absent = torch.where((absent[:, None] == pairs[:, :, 1]).any(1), (absent - KINDS) % KINDS + 1 + KINDS, absent)
    elsewhere = ~(absent[:, None] == pairs[:, :, 1]).any(1)
    _, shown, named = odds_of(evidence, patches, tags, asked(absent))
    assert (shown[elsewhere] < 0).float().mean() > 0.9 and (named[elsewhere] < 0).float().mean() > 0.95
    _, shown, named = odds_of(evidence, patches, tags)  # nobody asked
    assert not shown.any() and not named.any()
    nothing = (question[0], torch.zeros_like(question[1]))
    assert not evidence(patches, tags, nothing)[3].any()


def test_nothing_is_evidence_before_enough_was_seen():
    evidence = observed(count=80)
    odds, shown, named = odds_of(evidence, *world(10, seed=1)[:3])
    assert not odds.any() and not shown.any() and not named.any()


def test_batches_of_one_sample_are_compared_with_the_one_before():
    evidence = observed(batch=1, count=1200)
    patches, tags, _, _ = world(100, seed=1)
    true, _, _ = odds_of(evidence, patches, tags)
    foreign, _, _ = odds_of(evidence, patches, tags_of(world(100, seed=2)[3]))
    assert (true > 0).float().mean() > 0.9 and foreign.mean() < -1


def test_images_of_other_sizes_are_compared_all_the_same():
    """Places that repeat show nothing new: samples of changing size calibrate like those of one."""
    same, changing = (WordEvidence(VISION, WORD, [SEPARATOR]).train() for _ in range(2))
    for number in range(600):
        patches, tags, question, _ = world(1, 1000 + number)
        mean = patches.mean(1, keepdim=True)  # another place, which shows no word and leaves the mean as it is
        same.observe(torch.cat([patches, mean], dim=1), tags, question)
        changing.observe(torch.cat([patches, *[mean] * (1 + number % 3)], dim=1), tags, question)
    assert bool(changing.tags_shown.ready)
    for calibration in ("tags_shown", "question_shown", "question_named"):
        found, expected = (getattr(some.eval(), calibration) for some in (changing, same))
        # Rounding may move a sample from or to the held-out tenth.
        torch.testing.assert_close(found.slope_offset, expected.slope_offset, rtol=0.05, atol=0.05)


def test_padding_and_other_samples_change_nothing(evidence):
    patches, tags, question, _ = world(8, seed=3)
    together = evidence(patches, tags, question)
    padded = (
        torch.nn.functional.pad(tags[0], (0, 0, 0, 4)), torch.nn.functional.pad(tags[1], (0, 4), value=5),
        torch.nn.functional.pad(tags[2], (0, 4)), torch.nn.functional.pad(tags[3], (0, 4)),
    )  # fmt: skip
    alone = evidence(patches[2:3], tuple(part[2:3] for part in padded), tuple(part[2:3] for part in question))
    torch.testing.assert_close(alone[0][:, : tags[1].shape[1]], together[0][2:3], atol=1e-4, rtol=1e-4)
    for part in (3, 4):
        torch.testing.assert_close(alone[part], together[part][2:3], atol=1e-4, rtol=1e-4)


def test_tags_are_learned_from_as_far_as_they_are_scored():
    patches, (embedded, ids, mask, _), _, _ = world(30, seed=1)
    scores = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0))
    evidence = WordEvidence(VISION, WORD, [SEPARATOR]).train()
    evidence.observe(patches, (embedded, ids, mask, scores), None)
    weight = scores * (ids != SEPARATOR)  # (30, L)
    means = (weight[..., None] * embedded).sum(1) / weight.sum(1, keepdim=True)  # (30, WORD)
    learned = ~held_out_by_hash(patches.mean(1))  # (30,)
    assert not learned.all()
    torch.testing.assert_close(evidence.pairs.mean[VISION:], means[learned].mean(0), rtol=1e-4, atol=1e-5)


def test_without_separators_every_token_is_a_tag():
    evidence = WordEvidence(VISION, WORD, None)
    is_word, tag_of_token = evidence.tags_of_tokens(torch.tensor([[5, 6, 0]]), torch.tensor([[True, True, False]]))
    assert is_word.tolist() == [[True, True, False]] and tag_of_token.tolist() == [[0, 1, 3]]


def test_log_odds_are_those_of_two_normal_distributions():
    """Own N(1, 1) against other N(−1, 1): the log odds of x are 2x; with half the weight on own pairs, 2x − log 2."""
    generator = torch.Generator().manual_seed(0)
    for weight in (1.0, 0.5):
        calibration = PairCalibration().train()
        own, other = torch.randn(2, 512, generator=generator)
        calibration.keep(torch.stack([own + 1, other - 1, torch.full_like(own, weight)], dim=-1))
        calibration.eval()
        found = calibration(torch.tensor([-0.5, 0.0, 0.5]))
        assert torch.allclose(found, torch.tensor([-1.0, 0.0, 1.0]) + math.log(weight), atol=0.3)
        assert calibration(torch.tensor([-99.0, 99.0])).tolist() == [-MOST, MOST]


# ---- the verdict ---------------------------------------------------------------------------------------------------


def router_of(evidence, **fields):
    config = tiny_config(router_type="reliability", **fields)
    router = ReliabilityRouter(config).eval()
    router.word_evidence = evidence
    router.image_typicality.beyond = lambda profile: profile[:, 0]
    return router


def judged(router, patches, tags, question, beyond=0.0):
    profile = torch.full((len(patches), 1), float(beyond))
    return router.judge(patches, profile, tags, question, torch.ones(len(patches), dtype=torch.bool))


def test_what_is_left_out(evidence):
    router = router_of(evidence)
    patches, tags, question, _ = world(200, seed=1)
    foreign = world(200, seed=2)
    sound, kept = judged(router, patches, tags, question)
    assert sound.mean() > 0.98 and kept.mean() > 0.95
    for strange in (0.0, 20.0):  # an image of something else, and a damaged one
        weights, kept = judged(router, foreign[0], tags, question, strange)
        assert weights[:, 0].mean() < 0.35 and weights[:, 1].mean() > 0.9
        assert (kept[weights[:, 0] == 0] == 1).all(), "an image that was left out denies nothing"
    # A strange look alone is no failure: it still shows everything.
    assert judged(router, patches, tags, question, 20.0)[0].mean() > 0.97
    weights, _ = judged(router, patches, foreign[1], question)
    assert weights[:, 0].mean() > 0.9 and weights[:, 1].mean() < 0.5


def test_an_invention_among_true_tags_is_not_read(evidence):
    router = router_of(evidence)
    _, _, _, pairs = world(200, seed=1)
    lie = torch.stack([pairs[:, 0, 0] % KINDS + 1, pairs[:, 0, 1]], dim=-1)[:, None]  # the asked shape, another colour
    patches, tags, question, _ = world(200, seed=1, tagged=torch.cat([pairs, lie], dim=1))
    weights, kept = judged(router, patches, tags, question)
    assert weights.mean() > 0.95
    true, false = kept[:, [1, 2, 4, 5]], kept[:, [7, 8]]
    assert true.mean() > 0.9 and false.mean() < 0.35
    assert (kept[:, tags[1][0] == SEPARATOR] == 1).all()
    assert router_of(evidence, tag_score_encoding="text").judge(
        patches, torch.zeros(200, 1), tags, question, torch.ones(200, dtype=torch.bool)
    )[1] is None, "scores that are written as words cannot be lowered"  # fmt: skip


def recoloured(pairs, which):
    """The pairs [n, 2, 2] with another colour for those objects."""
    other = pairs.clone()
    other[:, which, 0] = other[:, which, 0] % KINDS + 1
    return other


def test_an_image_denies_no_more_than_one_invention(evidence):
    """If the colours of all tags are missing, the image may as well be what has changed."""
    router = router_of(evidence)
    _, _, _, pairs = world(200, seed=1)
    patches, tags, question, _ = world(200, seed=1, tagged=recoloured(pairs, [0]))
    weights, kept = judged(router, patches, tags, question)
    assert weights.mean() > 0.95 and kept[:, [1, 2]].mean() < 0.4 and kept[:, [4, 5]].mean() > 0.9
    assert judged(router, patches, tags, None)[1][:, [1, 2]].mean() < 0.4, "nor need anything be asked"
    patches, tags, question, _ = world(200, seed=1, tagged=recoloured(pairs, [0, 1]))
    weights, kept = judged(router, patches, tags, question)
    assert weights[:, 0].mean() > 0.95 and kept.mean() > 0.95


def test_an_image_that_does_not_show_what_is_asked_denies_nothing(evidence):
    router = router_of(evidence)
    patches, _, _, pairs = world(200, seed=1)
    tags = tags_of(recoloured(pairs, [0]))
    shapes = range(KINDS + 1, 2 * KINDS + 1)
    absent = torch.tensor([next(k for k in shapes if k not in row) for row in pairs[:, :, 1].tolist()])  # (200,)
    shown = evidence(patches, tags, asked(absent))[3]  # (200,)
    _, kept = judged(router, patches, tags, asked(absent))
    assert (shown < 0).float().mean() > 0.9 and (kept[shown < 0] == 1).all()


def test_before_anything_was_seen_nothing_changes():
    patches, tags, question, _ = world(20, seed=1)
    weights, kept = judged(router_of(WordEvidence(VISION, WORD, [SEPARATOR]).eval()), patches, tags, question)
    assert (weights == 1).all() and (kept == 1).all()


def test_what_nothing_can_replace_stays(evidence):
    router = router_of(evidence)
    patches, tags, question, _ = world(20, seed=1)
    untagged = (tags[0], tags[1], torch.zeros_like(tags[2]), tags[3])
    weights, _ = judged(router, torch.zeros_like(patches), untagged, question, 20.0)
    assert (weights == torch.tensor([1.0, 0.0])).all()


def test_the_posterior_by_hand():
    """P(image failed) = e^(named − sound) / Σ of the four explanations, and nothing happens at or below one half."""
    router = ReliabilityRouter(tiny_config(router_type="reliability"))
    zero, yes = torch.zeros(3), torch.ones(3, dtype=torch.bool)
    # Odds 1 : e^(−sound) : e^(−3) : e^(−3 − sound) of both sound, image, list, both failed.
    prior = torch.tensor([SOUND, -0.05, -0.2])
    odds = torch.stack([zero, -prior, zero - SOUND, -SOUND - prior]).softmax(0)[1]
    assert odds[0] < odds[1] < 0.5 < odds[2]
    weights, trusted = router.weigh(prior, zero, zero, zero, yes)
    assert weights.tolist() == [[1, 1], [1, 1], [0, 1]] and trusted.tolist() == [True, False, False]
    one = torch.full((3,), 3.2)
    prior = torch.full((3,), SOUND)
    assert router.weigh(prior, -one, zero, zero, yes)[0].tolist() == [[1, 1]] * 3  # nobody knows which
    assert router.weigh(prior, -one, one, zero, yes)[0].tolist() == [[1, 0]] * 3  # the image shows what is asked
    assert router.weigh(prior, -one, zero, one, yes)[0].tolist() == [[0, 1]] * 3  # the tags name it
    assert router.weigh(prior, -one, zero, one, ~yes)[0].tolist() == [[1, 0]] * 3
    assert math.log(INVENTED) > -2, "one tag that is not shown is an invention, not a failure"
