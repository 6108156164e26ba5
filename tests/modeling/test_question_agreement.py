"""Picture and tags disagree, and the question tells which of them is wrong; no such sample was ever shown."""

import pytest
import torch
from tiny_models import LANGUAGES, PLACEHOLDER, Sample, batch_of, open_branches, tiny_config, tiny_model

pytestmark = pytest.mark.numerics

# What is asked about things of the first and of the second kind, and their tags.
QUESTIONS = ((7, 8, 9), (40, 41, 42))
TAGS = ((10, 11), (30, 31))


def batch_about(model, pictures, tags, questions, seed=0, labels=False):
    """Pictures of two kinds, each a pattern in noise, with tags and questions of two kinds."""
    samples = [Sample(pictures=(seed * 10_000 + i,), question=QUESTIONS[kind]) for i, kind in enumerate(questions)]
    batch = batch_of(model, samples, answers=labels, labels=labels)
    patterns = torch.randn(2, *batch["pixel_values"].shape[1:], generator=torch.Generator().manual_seed(5))
    batch["pixel_values"] = batch["pixel_values"] + 2 * patterns[list(pictures)]
    batch["tag_input_ids"][:, :2] = torch.tensor(TAGS)[list(tags)]  # the rest is invented
    return batch


def fitted(language="llama", **fields):
    """A model that has seen 600 questions, each with its own picture and tags."""
    fields = {"router_type": "reliability", "question_agreement": True, **fields}
    model = tiny_model(language, **fields)
    open_branches(model)
    model.train()
    kinds = [i % 2 for i in range(100)]
    for seed in range(1, 7):
        model(**batch_about(model, kinds, kinds, kinds, seed, labels=True))
    return model.eval()


@torch.no_grad()
def weights_of(model, **batch):
    start = {} if not model.config.is_encoder_decoder else {"decoder_input_ids": batch["input_ids"][:, :1]}
    return model(**batch, **start).router_weights


KINDS = [i % 2 for i in range(40)]
OTHERS = [1 - kind for kind in KINDS]


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_question_decides_between_picture_and_tags(language):
    model = fitted(language)
    sound = weights_of(model, **batch_about(model, KINDS, KINDS, KINDS))
    assert sound.median(0).values.min() > 0.9
    swapped_picture = weights_of(model, **batch_about(model, OTHERS, KINDS, KINDS)).median(0).values
    assert swapped_picture[0] < 0.1 and swapped_picture[1] > 0.9
    false_tags = weights_of(model, **batch_about(model, KINDS, OTHERS, KINDS)).median(0).values
    assert false_tags[0] > 0.9 and false_tags[1] < 0.1


def test_without_the_question_nobody_is_blamed():
    model = fitted(question_agreement=False)
    for pictures, tags in ((OTHERS, KINDS), (KINDS, OTHERS)):
        assert weights_of(model, **batch_about(model, pictures, tags, KINDS)).median(0).values.min() > 0.9


def test_where_picture_and_tags_agree_an_odd_question_blames_nobody():
    model = fitted()
    assert weights_of(model, **batch_about(model, KINDS, KINDS, OTHERS)).median(0).values.min() > 0.9


def test_without_tags_the_picture_stays():
    model = fitted()
    batch = batch_about(model, OTHERS, KINDS, KINDS)
    batch = {name: value for name, value in batch.items() if not name.startswith("tag_")}
    assert weights_of(model, **batch)[:, 0].min() > 0.9


def test_the_answer_is_no_part_of_the_question():
    """With labels, as in training and in evaluation of a loss, the weights are those of the bare question."""
    model = fitted(reliability_slope=0.3)
    bare = weights_of(model, **batch_about(model, OTHERS, KINDS, KINDS))
    torch.testing.assert_close(weights_of(model, **batch_about(model, OTHERS, KINDS, KINDS, labels=True)), bare)


def test_generation_asks_the_same_question():
    model = fitted(reliability_slope=0.3)
    model.generation_config.eos_token_id = None
    batch = batch_about(model, [0, 1, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1])
    with torch.no_grad():
        tokens = {
            use_cache: model.generate(**batch, max_new_tokens=4, do_sample=False, use_cache=use_cache)
            for use_cache in (True, False)
        }
        first = model(**batch).logits[:, -1]
    assert torch.equal(*tokens.values())
    first[:, PLACEHOLDER] = -torch.inf
    assert torch.equal(tokens[True][:, batch["input_ids"].shape[1]], first.argmax(-1))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"soft_prompt_type": "static"}, "reads no tags.*soft_prompt_type='dynamic'"),
        ({"image_trust": 0.5}, "image_trust=0.5 and question_agreement=True.*only one"),
    ],
)
def test_settings_that_contradict_it_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**{"router_type": "reliability", "question_agreement": True, **fields})


def test_images_without_a_question_blame_nobody():
    """Neither where no question is given, nor for a single image whose row is empty."""
    model = fitted()
    batch = batch_about(model, OTHERS, KINDS, KINDS)
    empty = {**batch, "question_attention_mask": torch.zeros_like(batch["question_attention_mask"])}
    without = {name: value for name, value in batch.items() if not name.startswith("question_")}
    for inputs in (empty, without):
        assert weights_of(model, **inputs).median(0).values.min() > 0.9


def test_each_image_of_a_sample_is_asked_about_by_itself():
    """Two images in one prompt, the second of another thing than the question: only that one is doubted."""
    model = fitted()
    kinds = [kind for _ in range(20) for kind in (0, 1)]
    single = batch_about(model, kinds, [0] * 40, [0] * 40)  # everything speaks of things of the first kind but images
    pairs = batch_of(model, [Sample(pictures=(2 * i, 2 * i + 1)) for i in range(20)], answers=False)
    rows = {name: single[name] for name in single if name not in ("input_ids", "attention_mask")}
    weights = weights_of(model, **{**pairs, **rows}).view(20, 2, 2).median(0).values  # (images of a pair, streams)
    assert weights[0].min() > 0.9 and weights[1, 0] < 0.1


def test_it_says_nothing_to_other_routers():
    for router in ("none", "gate", "channel"):
        assert not tiny_config(router_type=router, question_agreement=True).asks_the_question
