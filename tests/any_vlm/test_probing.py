"""Every family is looked into by its own forward pass: nothing that is measured changes what the model computes."""

from types import SimpleNamespace

import pytest
import torch
from more_families import MORE
from tiny_families import FAMILIES
from transformers.utils import logging

from poise.evaluation.probing import attention_backends
from poise.evaluation.probing.answers import (
    answer_log_probabilities,
    answer_logits,
    attention_on_prompt,
    decoder_start_id,
    greedy_answers,
)
from poise.evaluation.probing.attention_blocking import block_attention
from poise.evaluation.probing.image_features import Change, image_features
from poise.evaluation.probing.parts import is_encoder_decoder, model_parts
from poise.evaluation.probing.prompt_batch import PromptBatch
from poise.evaluation.probing.residual_stream import read_off, residual_stream

pytestmark = pytest.mark.numerics

ALL = {**FAMILIES, **MORE}
# What these cannot do, they say; the test of that is below.
NO_IMAGE_TOKENS = ("kosmos2", "mllama", "idefics")
ANSWER = [[11, 12, 13]]


@pytest.fixture(scope="module", params=list(ALL))
def prompts(request):
    logging.set_verbosity_error()
    torch.manual_seed(0)
    model, inputs = ALL[request.param]()
    with torch.no_grad():  # initialized to zeros, the image of Gemma 3 would say nothing
        for name, parameter in model.named_parameters():
            if "projection_weight" in name:
                parameter.normal_(std=0.2)
    inputs.pop("decoder_input_ids", None)
    return PromptBatch(model_parts(model.eval()), inputs)


@pytest.fixture
def with_image_tokens(prompts, request):
    if any(f"[{name}]" in request.node.name for name in NO_IMAGE_TOKENS):
        pytest.skip("its image stands in no place of the sequence")
    return prompts


def decoder(prompts):
    """What an encoder-decoder's forward wants besides."""
    start = decoder_start_id(prompts.parts) if prompts.parts.is_encoder_decoder else 0
    return {"decoder_input_ids": torch.tensor([[start, 3]])} if prompts.parts.is_encoder_decoder else {}


@torch.no_grad()
def own_logits(prompts):
    return prompts.parts.model(**prompts.inputs, **decoder(prompts), use_cache=False).logits


def one(prompts, place):
    return torch.zeros_like(prompts.input_ids, dtype=torch.bool).index_fill(1, torch.tensor([place]), True)


@torch.no_grad()
def test_nothing_changed_is_the_model(prompts):
    own = own_logits(prompts)
    last = one(prompts, prompts.input_ids.shape[1] - 1)
    word = prompts.parts.model.get_input_embeddings()(prompts.input_ids)[last]
    assert torch.equal(prompts.logits(**decoder(prompts)), own)
    assert torch.equal(prompts.logits([Change(last, word)], **decoder(prompts)), own)
    assert not torch.allclose(prompts.logits([Change(last, -word)], **decoder(prompts)), own, atol=1e-4)
    assert torch.equal(own_logits(prompts), own)  # nothing is left behind


@torch.no_grad()
def test_image_tokens_are_replaced_where_the_model_reads_them(with_image_tokens):
    prompts, options = with_image_tokens, decoder(with_image_tokens)
    own, rows = own_logits(prompts), prompts.image_rows(prompts.image)
    assert torch.equal(prompts.logits([Change(prompts.image, rows)], **options), own)
    nowhere = torch.zeros_like(prompts.image)
    assert torch.equal(prompts.logits([Change(nowhere, rows[:0])], **options), own)
    changed = prompts.logits([Change(prompts.image, -rows)], **options)
    assert not torch.allclose(changed, own, atol=1e-5)
    # One place at a time adds up to all of them.
    singly = [Change(one(prompts, place), -rows[number]) for number, place in enumerate(prompts.image[0].nonzero())]
    assert torch.equal(prompts.logits(singly, **options), changed)


def test_gradients_reach_the_replaced_tokens(with_image_tokens):
    prompts = with_image_tokens
    rows = prompts.image_rows(prompts.image).clone().requires_grad_()
    answer_log_probabilities(prompts, ANSWER, [Change(prompts.image, rows)]).sum().backward()
    assert rows.grad is not None and bool(rows.grad.abs().sum(-1).gt(0).any())


@torch.no_grad()
def test_cached_answers_are_uncached_ones(prompts):
    changes = [] if not bool(prompts.image.any()) else [Change(prompts.image, prompts.image_rows(prompts.image) * 0)]
    for some in ([], changes):
        cached = greedy_answers(prompts, some, max_new_tokens=4)
        assert cached == greedy_answers(prompts, some, max_new_tokens=4, use_cache=False)


@torch.no_grad()
def test_an_answers_probability_is_that_of_its_steps(prompts):
    own, total = torch.tensor(ANSWER), 0.0
    for place, token in enumerate(ANSWER[0]):
        logits = answer_logits(prompts, own[:, :place])
        total += float(logits[0, -1].log_softmax(-1)[token])
    assert answer_log_probabilities(prompts, ANSWER).item() == pytest.approx(total, abs=1e-4)


@torch.no_grad()
def test_attention_is_what_the_eager_maps_say(prompts):
    model, parts, length = prompts.parts.model, prompts.parts, prompts.input_ids.shape[1]
    if parts.family == "blip-2" and parts.is_encoder_decoder:
        pytest.skip("this family's output has no attention maps to compare with")
    received = attention_on_prompt(prompts, ANSWER)[:, 0]  # (L, T)
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        if parts.is_encoder_decoder:
            begun = torch.tensor([[decoder_start_id(parts), *ANSWER[0][:-1]]])
            maps = model(**prompts.inputs, decoder_input_ids=begun, output_attentions=True).cross_attentions
        else:
            inputs = prompts.forward_inputs(torch.tensor(ANSWER)[:, :-1])
            output = model(**inputs, use_cache=False, output_attentions=True)
            maps = output.get("attentions") or output.language_model_outputs.attentions
            maps = [some[:, :, length - 1 :, :length] for some in maps if some.shape[-1] == length + 2]
    finally:
        model.set_attn_implementation(before)
    expected = torch.stack([some[0].mean(0).mean(0) for some in maps])  # (L', T)
    kept = ~received.isnan().any(-1)
    assert (
        kept.sum()
        == len(expected)
        == sum(module is not None for module in (parts.cross_attentions or parts.attentions))
    )
    torch.testing.assert_close(received[kept], expected, rtol=1e-4, atol=1e-6)  # blocks add in another order


@torch.no_grad()
def test_blocked_positions_receive_exactly_nothing(prompts):
    model, last = prompts.parts.model, prompts.input_ids.shape[1] - 1
    blocked = one(prompts, last), one(prompts, 1)
    before, found = model.config._attn_implementation, {}
    free = answer_log_probabilities(prompts, ANSWER)
    for name in ("sdpa", "eager"):
        model.set_attn_implementation(name)
        with block_attention(prompts.parts, *blocked, answer_queries=True):
            found[name] = answer_log_probabilities(prompts, ANSWER)
            received = attention_on_prompt(prompts, ANSWER)[..., 1]
    model.set_attn_implementation(before)
    torch.testing.assert_close(found["sdpa"], found["eager"], rtol=1e-5, atol=1e-5)
    assert not torch.equal(found["sdpa"], free)
    assert received.nansum() == 0 and (attention_on_prompt(prompts, ANSWER)[..., 1].nansum() > 0)
    assert torch.equal(answer_log_probabilities(prompts, ANSWER), free)


@torch.no_grad()
def test_the_lens_at_the_last_layer_reads_the_logits(prompts):
    stream = residual_stream(prompts)
    places = torch.arange(prompts.input_ids.shape[1])
    depth = len(prompts.parts.layers)
    assert len(stream.states) == depth + 1
    read = torch.cat(list(read_off(prompts, stream, depth, places)))
    earlier = torch.cat(list(read_off(prompts, stream, 1, places)))
    assert not torch.allclose(read, earlier)
    if not prompts.parts.is_encoder_decoder:  # an encoder's states are no logits of the model's own
        assert torch.equal(read, own_logits(prompts)[0])


def test_features_for_deeper_layers_are_replaced_with_the_tokens():
    model, inputs = FAMILIES["qwen3_vl"]()
    features = image_features(model_parts(model), inputs)
    before = [part.clone() for layer in features.output["deepstack_features"] for part in layer]
    changed = features.with_rows(features.rows + 1)
    after = [part for layer in changed["deepstack_features"] for part in layer]
    assert len(after) == len(before) > 0
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, old + 1)


@pytest.mark.parametrize(("whole", "text"), [(True, False), (False, True), (False, False)])
def test_either_configuration_makes_an_encoder_decoder(whole, text):
    config = SimpleNamespace(is_encoder_decoder=whole)
    config.get_text_config = lambda decoder: SimpleNamespace(is_encoder_decoder=text)
    assert is_encoder_decoder(SimpleNamespace(config=config)) == (whole or text)


def test_a_family_without_image_tokens_says_so_in_one_line():
    for name in NO_IMAGE_TOKENS:
        model, inputs = ALL[name]()
        prompts = PromptBatch(model_parts(model.eval()), inputs)
        with pytest.raises(ValueError, match="has no token ablation: its ") as error:
            prompts.parts.check_image_tokens("token ablation")
        assert "\n" not in str(error.value)


def test_layers_without_attention_are_told_apart():
    model, inputs = MORE["lfm2_vl"]()
    prompts = PromptBatch(model_parts(model.eval()), inputs)
    nothing = torch.zeros_like(prompts.image)
    with pytest.raises(ValueError, match="layer 0 has no attention weights"):
        with block_attention(prompts.parts, nothing, nothing, layers=[0]):
            pass
    received = attention_on_prompt(prompts, ANSWER)
    assert received.isnan().all(-1).all(-1).tolist() == [True, False, True]


def test_statistics_of_attention_never_hold_a_map(monkeypatch):
    """Weights exist for a block of rows at a time, whatever the length; what is returned grows with layers × tokens."""
    model, inputs = FAMILIES["llava"]()
    words = torch.randint(3, 90, (1, 300))
    prompts = PromptBatch(
        model_parts(model.eval()), {**inputs, "input_ids": torch.cat([inputs["input_ids"], words], 1)}
    )
    largest = 0
    original = torch.softmax

    def softmax(tensor, *args, **kwargs):
        nonlocal largest
        largest = max(largest, tensor.numel())
        return original(tensor, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "softmax", softmax)
    received = attention_on_prompt(prompts, ANSWER)
    length = prompts.input_ids.shape[1]
    assert received.shape == (3, 1, length)
    assert largest == 4 * attention_backends._BLOCK * (length + 2)  # heads × rows × keys
