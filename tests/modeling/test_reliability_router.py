"""The reliability router: identity at the start, fades what is not typical, drops whole streams in training."""

import pytest
import torch
from tiny_models import MIXED, Sample, batch_of, fit_statistics, image_inputs, open_branches, tiny_model

from poise.modeling import PoiseForConditionalGeneration
from poise.modeling.reliability_router import Complement

pytestmark = pytest.mark.numerics


def fitted(**fields):
    """Trained branches and fitted statistics."""
    model = tiny_model(router_type="reliability", **fields)
    open_branches(model)
    fit_statistics(model)
    return model


def weights_of(model, **inputs):
    with torch.no_grad():
        return model.get_image_features(**inputs).router_weights


def test_sound_streams_keep_their_weight_and_broken_ones_fade():
    """Nothing broken was seen when the statistics were made."""
    model = fitted()
    sound = image_inputs(range(50))
    assert weights_of(model, **sound).median(0).values.min() > 0.9
    broken = {
        "blank": torch.zeros_like(sound["pixel_values"]),
        "one grey": torch.full_like(sound["pixel_values"], 0.5),
        "far too bright": sound["pixel_values"] * 20,
    }
    for name, pixels in broken.items():
        weights = weights_of(model, **{**sound, "pixel_values": pixels})
        assert weights[:, 0].median() < 0.1, name
        assert weights[:, 1].median() > 0.5, name  # and the tags stay


def test_a_stream_that_nothing_can_replace_stays():
    """A blank image without tags: there is nothing better to leave it for."""
    model = fitted()
    blank = image_inputs(range(50))
    blank["pixel_values"] = torch.zeros_like(blank["pixel_values"])
    assert weights_of(model, **blank)[:, 0].max() < 0.1
    untagged = {name: value for name, value in blank.items() if name == "pixel_values"}
    assert weights_of(model, **untagged)[:, 0].min() > 0.9


def test_without_a_second_stream_the_router_is_the_identity():
    """In training, too: nothing is learned from an image that is dropped."""
    fields = {"soft_prompt_type": "none"}
    model = tiny_model(router_type="reliability", stream_dropout=0.9, **fields).train()
    none = tiny_model(router_type="none", **fields).train()
    none.load_state_dict(model.state_dict(), strict=False)
    batch = batch_of(model, [Sample(images=(i,)) for i in range(20)], labels=True)
    output = model(**batch)
    assert (output.router_weights == 1).all()
    torch.testing.assert_close(output.logits, none(**batch).logits)


def test_a_faded_stream_is_its_null_token_and_complement():
    """w·x + (1 − w)·(null + complement), with the weights that the model reports."""
    model = fitted()
    inputs = image_inputs([1, 2, 3], tags=[True, True, False])
    inputs["pixel_values"][0] = 0
    none = tiny_model(router_type="none", seed=3)
    none.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        plain, routed = none.get_image_features(**inputs), model.get_image_features(**inputs)
        image, text = plain.image_hidden_states, plain.soft_prompt_hidden_states
        router = model.model.router
        image_null = router.image_complement(text)
        text_null = router.text_complement(image)
        image_weight, text_weight = routed.router_weights[..., None, None].unbind(1)
    assert routed.router_weights.tolist() == [[0, 1], [1, 1], [1, 0]]
    torch.testing.assert_close(routed.image_hidden_states, image_weight * image + (1 - image_weight) * image_null)
    torch.testing.assert_close(routed.soft_prompt_hidden_states, text_weight * text + (1 - text_weight) * text_null)


def test_complement_is_attention_by_hand():
    complement = Complement(8).requires_grad_(False)
    for parameter in complement.parameters():
        parameter.copy_(torch.randn(parameter.shape))
    other = torch.randn(2, 5, 8)
    for row, tokens in zip(complement(other), other, strict=True):
        weights = (complement.key(tokens) @ complement.query(complement.null) / 8**0.5).softmax(-1)
        torch.testing.assert_close(row[0], complement.null + complement.out(weights @ tokens))
    nothing = complement(torch.zeros(2, 0, 8))  # nothing to attend to gives nothing
    assert torch.equal(nothing, complement.null.expand(2, 1, 8))


def test_a_complement_starts_at_nothing():
    complement = Complement(8)
    for module in complement.modules():
        if hasattr(module, "init_own_weights"):
            module.init_own_weights(0.02)
    assert not complement(torch.randn(1, 3, 8)).any()


def test_training_drops_whole_streams_and_never_both():
    model = tiny_model(router_type="reliability", stream_dropout=0.4)
    open_branches(model)
    model.train()
    samples = [Sample(images=(i,), tags=(i % 3 > 0,)) for i in range(60)]
    torch.manual_seed(0)
    weights = model(**batch_of(model, samples, labels=True)).router_weights
    assert set(weights.unique().tolist()) == {0.0, 1.0}
    assert (weights.sum(-1) >= 1).all()
    tagged = weights[torch.tensor([i % 3 > 0 for i in range(60)])]
    # 0.4 each, and both kept again in the 0.16 where both would go.
    assert 0.1 < (tagged[:, 0] == 0).float().mean() < 0.4
    assert 0.1 < (tagged[:, 1] == 0).float().mean() < 0.4


def test_dropout_switched_off_switches_stream_dropout_off():
    model = tiny_model(router_type="reliability", stream_dropout=0.9).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    assert (model(**batch_of(model, [Sample(images=(i,)) for i in range(20)])).router_weights == 1).all()


def test_evaluation_drops_nothing_and_learns_nothing():
    model = tiny_model(router_type="reliability", stream_dropout=0.9)
    before = {name: value.clone() for name, value in model.model.router.state_dict().items()}
    batch = batch_of(model, [Sample(images=(i,)) for i in range(20)], labels=True)
    assert (model(**batch).router_weights == 1).all()
    model.train()
    with torch.no_grad():  # a reference pass, or a loss that is only looked at
        model(**batch)
    for name, value in model.model.router.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_every_training_image_is_seen_once_and_stand_ins_never():
    model = tiny_model(router_type="reliability").train()
    router = model.model.router
    model(**batch_of(model, MIXED, labels=True))
    items, tagged = 6, 4

    def seen(statistics):
        return int(statistics.count + statistics.calibration_count)

    assert seen(router.image_typicality) == items
    assert tagged - 1 <= int(router.word_evidence.pairs.count) <= tagged  # but for what is held out
    before = {name: buffer.clone() for name, buffer in router.named_buffers()}
    model(**batch_of(model, Sample(images=()), labels=True))
    assert all(torch.equal(buffer, before[name]) for name, buffer in router.named_buffers())


def test_an_image_without_tags_reads_the_null_token_that_training_knows():
    model = fitted()
    features = model.get_image_features(**image_inputs([1, 2], tags=[True, False]))
    assert features.router_weights[1, 1] == 0 and features.router_weights[0, 1] > 0.5
    assert features.router_weights[1, 0] == 1  # so the routed image is the image
    null = model.model.router.text_complement(features.image_hidden_states)  # (2, 1, D)
    torch.testing.assert_close(features.soft_prompt_hidden_states[1], null[1].expand(2, -1), rtol=1e-4, atol=1e-5)
    assert (features.soft_prompt_hidden_states[0] - null[0]).abs().max() > 0.1


def test_beside_a_static_prompt_only_the_image_is_judged():
    model = fitted(soft_prompt_type="static")
    assert not hasattr(model.model.router, "word_evidence")
    inputs = image_inputs(range(20), tags=False)
    weights = weights_of(model, **inputs)
    assert (weights[:, 1] == 1).all() and weights[:, 0].median() > 0.9
    blank = weights_of(model, pixel_values=torch.zeros_like(inputs["pixel_values"]))
    assert (blank[:, 1] == 1).all() and blank[:, 0].max() < 0.1


def test_weights_do_not_depend_on_what_is_trained():
    """The statistics are of frozen features: new weights in projector and soft prompt change no verdict."""
    model = fitted()
    inputs = image_inputs(range(10))
    inputs["pixel_values"][:5] = 0
    before = weights_of(model, **inputs)
    open_branches(model, seed=9)
    assert torch.equal(weights_of(model, **inputs), before)


def test_save_and_load_keep_the_verdicts(tmp_path):
    model = fitted()
    model.save_pretrained(tmp_path)
    loaded = PoiseForConditionalGeneration.from_pretrained(tmp_path)
    inputs = image_inputs(range(10))
    inputs["pixel_values"][:5] = 0
    torch.testing.assert_close(weights_of(loaded, **inputs), weights_of(model, **inputs))


def test_cached_features_without_their_profile_are_one_clear_line():
    model = fitted()
    with pytest.raises(ValueError, match="image_profile=None, but router_type='reliability'"):
        model.get_image_features(vision_features=torch.randn(1, 1, 9, 32))
