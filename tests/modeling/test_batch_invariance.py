"""A sample's result is its own: the same alone and in any batch, whichever side the padding is on."""

import pytest
import torch
from tiny_models import LANGUAGES, MIXED, ROUTERS, Sample, batch_of, decoder_inputs, open_model, real_logits

pytestmark = pytest.mark.numerics

CLOSE = {"atol": 2e-4, "rtol": 1e-3}


def every_kind_of_model(test):
    test = pytest.mark.parametrize("language", LANGUAGES)(test)
    test = pytest.mark.parametrize("router", ROUTERS)(test)
    return test


@every_kind_of_model
def test_alone_as_in_a_mixed_batch_padded_left_or_right(language, router):
    model = open_model(language, router_type=router)
    right = real_logits(model, MIXED, side="right")
    left = real_logits(model, MIXED, side="left")
    for place, sample in enumerate(MIXED):
        alone = real_logits(model, sample)[0]
        torch.testing.assert_close(right[place], alone, **CLOSE)
        torch.testing.assert_close(left[place], alone, **CLOSE)


@every_kind_of_model
def test_what_padding_holds_does_not_matter(language, router):
    model = open_model(language, router_type=router)
    batch = batch_of(model, MIXED, pad_to=60)
    decoder = decoder_inputs(model, MIXED)
    changed = dict(batch)
    changed["input_ids"] = torch.where(batch["attention_mask"] == 0, 33, batch["input_ids"])
    if "tag_input_ids" in batch:
        nothing = batch["tag_attention_mask"] == 0
        changed["tag_input_ids"] = torch.where(nothing, 17, batch["tag_input_ids"])
        changed["tag_scores"] = torch.where(nothing, 0.9, batch["tag_scores"])
    with torch.no_grad():
        one, other = model(**batch, **decoder), model(**changed, **decoder)
    real = batch["attention_mask"].bool()
    if model.config.is_encoder_decoder:
        torch.testing.assert_close(one.encoder_last_hidden_state[real], other.encoder_last_hidden_state[real], **CLOSE)
    else:
        torch.testing.assert_close(one.logits[real], other.logits[real], **CLOSE)


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("pooling,length", [("mean", 1), ("queries", 8)])
def test_wider_padding_of_the_tags_changes_nothing(router, pooling, length):
    model = open_model(router_type=router, soft_prompt_pooling=pooling, soft_prompt_length=length)
    batch = batch_of(model, Sample(images=(4,)))
    assert batch["tag_attention_mask"].all()  # as narrow as can be: the last tag meets padding only in the wide one
    wide = dict(batch)
    for name in ("tag_input_ids", "tag_attention_mask", "tag_scores"):
        wide[name] = torch.nn.functional.pad(batch[name], (0, 5))
    with torch.no_grad():
        torch.testing.assert_close(model(**wide).logits, model(**batch).logits, **CLOSE)


def test_a_row_of_text_alone_is_not_routed():
    """Text beside images of other rows reads exactly as it does in a batch of text alone."""
    text = Sample(images=(), question=(16, 17, 18))
    for router in ROUTERS[1:]:
        model = open_model(router_type=router)
        beside = real_logits(model, [text, Sample()])[0]
        torch.testing.assert_close(beside, real_logits(model, text)[0], **CLOSE)


@pytest.mark.parametrize("router", ROUTERS)
def test_images_go_to_their_own_rows(router):
    """Swapping two rows swaps their results: no image or tag of one row reaches the other."""
    model = open_model(router_type=router)
    one, other = Sample(images=(1, 2)), Sample(images=(3,), question=(11, 12))
    first = real_logits(model, [one, other])
    second = real_logits(model, [other, one])
    torch.testing.assert_close(first[0], second[1], **CLOSE)
    torch.testing.assert_close(first[1], second[0], **CLOSE)


def test_a_row_may_be_padding_without_tags_in_every_encoding():
    """All-zero rows of tags give finite results, for every way of reading scores."""
    for encoding in ("text", "embedding", "attention_bias"):
        model = open_model(tag_score_encoding=encoding)
        logits = real_logits(model, [Sample(tags=(False,)), Sample()])
        assert all(torch.isfinite(rows).all() for rows in logits)
