"""Blocked positions receive exactly zero weight, whatever the implementation, the mask and the cache."""

from contextlib import contextmanager

import pytest
import torch
from small_vlms import KINDS, image_tokens, poise_around, small_vlm
from transformers import AttentionInterface, AttentionMaskInterface, MistralConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from poise.evaluation.probing.answers import greedy_answers
from poise.evaluation.probing.attention_backends import attention_implementation, check_layers
from poise.evaluation.probing.attention_blocking import block_attention
from poise.evaluation.probing.image_features import Change

pytestmark = pytest.mark.numerics

IMPLEMENTATIONS = ("eager", "sdpa")


@contextmanager
def implementation(vlm, name):
    """The language model's attention by `name`."""
    before = [stack.config._attn_implementation for stack in vlm.parts.stacks]
    for stack in vlm.parts.stacks:
        stack.set_attn_implementation(name)
    try:
        yield
    finally:
        for stack, old in zip(vlm.parts.stacks, before, strict=True):
            stack.set_attn_implementation(old)


@contextmanager
def recorded_weights(vlm):
    """(module, weights (B, H, Q, K)) of every attention of the language model; SDPA's are its answer to unit values."""
    found = []
    modules = {*vlm.parts.attentions, *vlm.parts.cross_attentions}

    def record_sdpa(module, query, key, value, attention_mask, **kwargs):
        if module in modules:
            units = torch.eye(key.shape[2]).expand(*key.shape[:3], -1)  # (B, H', K, K)
            weights, _ = sdpa_attention_forward(module, query, key, units, attention_mask, **kwargs)  # (B, Q, H, K)
            found.append((module, weights.transpose(1, 2)))
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)

    def record_eager(module, args, output):
        found.append((module, output[-1]))  # T5 puts the position bias in between

    hooks = []
    if vlm.parts.reader.config._attn_implementation == "eager":
        hooks = [module.register_forward_hook(record_eager) for module in modules]
    ALL_ATTENTION_FUNCTIONS["sdpa"] = record_sdpa
    try:
        yield found
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]
        for hook in hooks:
            hook.remove()


def some_groups(vlm, prompts):
    """(queries, keys): text behind the image no longer sees three of its tokens."""
    keys = image_tokens(prompts, [1, 4, 7])  # (B, T)
    behind = prompts.placeholders.flip(1).cumsum(1).flip(1) == 0  # (B, T)
    return behind & prompts.attention_mask.bool(), keys


def decoder_of(vlm, count=2):
    """What an encoder-decoder's forward wants besides."""
    return {"decoder_input_ids": torch.tensor([[0, 7, 9]] * count)} if vlm.kind == "t5" else {}


@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_weights_are_exactly_zero_where_blocked_and_nowhere_else(kind, name, with_mask):
    vlm = small_vlm(kind)
    prompts, inputs = vlm.prompts(), vlm.full_inputs()
    queries, keys = some_groups(vlm, prompts)
    if not with_mask:
        inputs["attention_mask"] = None
    layer = vlm.parts.attentions[1]
    with implementation(vlm, name), recorded_weights(vlm) as found:
        with block_attention(vlm.parts, queries, keys, [1]):
            vlm.model(**inputs)
        blocked = dict(found)
        found.clear()
        vlm.model(**inputs)
        free = dict(found)
    pairs = (queries[:, :, None] & keys[:, None, :])[:, None]  # (B, 1, Q, K)
    assert blocked.keys() == free.keys() and layer in free
    assert (free[layer].masked_select(pairs) > 0).all()
    assert (blocked[layer].masked_select(pairs) == 0).all()
    for module, weights in blocked.items():
        assert not weights.isnan().any()
        if module is not layer:
            assert (weights > 0).equal(free[module] > 0)
    # Other queries of the layer keep what they had: nothing before it has changed.
    torch.testing.assert_close(
        blocked[layer].masked_select(~queries[:, None, :, None]), free[layer].masked_select(~queries[:, None, :, None])
    )


@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@torch.no_grad()
def test_cross_attention_of_the_decoder(name, with_mask):
    vlm = small_vlm("t5")
    prompts, inputs = vlm.prompts(), vlm.full_inputs()
    _, keys = some_groups(vlm, prompts)
    if not with_mask:
        inputs["attention_mask"] = None
    with implementation(vlm, name), recorded_weights(vlm) as found:
        with block_attention(vlm.parts, torch.zeros_like(keys), keys, [0, 2], answer_queries=True):
            vlm.model(**inputs)
    for module, weights in found:
        for_keys = weights.masked_select(keys[:, None, None, :])
        place = [i for i, cross in enumerate(vlm.parts.cross_attentions) if cross is module]
        if place and place[0] in (0, 2):
            assert (for_keys == 0).all()
        elif place:
            assert (for_keys > 0).all()


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_nothing_of_a_position_that_nobody_may_see_gets_through(kind, name):
    vlm = small_vlm(kind)
    prompts, keys = vlm.prompts(), image_tokens(vlm.prompts(), [1, 4, 7])
    noise = Change(keys, 7 * torch.randn(int(keys.sum()), 48))
    with implementation(vlm, name):
        with block_attention(vlm.parts, ~keys, keys, answer_queries=True):
            clean = prompts.logits(**decoder_of(vlm))
            changed = prompts.logits([noise], **decoder_of(vlm))
        assert torch.equal(clean[:, -1], changed[:, -1])
        assert not torch.equal(prompts.logits(**decoder_of(vlm))[:, -1], clean[:, -1])


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_eager_and_sdpa_agree(kind):
    vlm = small_vlm(kind)
    queries, keys = some_groups(vlm, vlm.prompts())
    results = []
    for name in IMPLEMENTATIONS:
        with implementation(vlm, name), block_attention(vlm.parts, queries, keys, [0], answer_queries=True):
            results.append(vlm.model(**vlm.full_inputs()).logits[:, -1])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("options", [{"use_cache": False}, {"cache_implementation": "static"}, {"num_beams": 2}])
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_generation_with_and_without_a_cache(kind, name, options):
    if kind == "t5" and name == "eager" and "cache_implementation" in options:
        pytest.skip("transformers' T5 gives other logits with eager attention and a static cache, blocked or not")
    vlm = small_vlm(kind)
    prompts = vlm.prompts()
    last = torch.zeros_like(prompts.attention_mask, dtype=torch.bool)
    last[:, -1] = kind != "t5"
    keys = prompts.image
    settings = {"do_sample": False, "max_new_tokens": 4, "min_new_tokens": 4}
    settings |= {"output_logits": True, "return_dict_in_generate": True}

    def logits(**more):
        return torch.stack(vlm.model.generate(**prompts.inputs, **settings, **more).logits)

    with implementation(vlm, name):
        free = logits()
        with block_attention(vlm.parts, last, keys, [1, 2], answer_queries=True):
            cached = logits()
            if "num_beams" in options:  # a beam is one more row of the same prompt
                assert logits(**options)[0][::2].allclose(cached[0], atol=1e-5)
                return
            torch.testing.assert_close(logits(**options), cached, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(free[0], cached[0], atol=1e-3)
        torch.testing.assert_close(logits(), free)


@torch.no_grad()
def test_a_cache_that_has_forgotten_the_first_keys():
    """Of a sliding window it keeps the last ones: a blocked position stays the same one while the window moves."""
    vlm = poise_around(
        MistralConfig, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=6, initializer_range=0.2,
    )  # fmt: skip
    prompts = vlm.prompts()
    queries, keys = (torch.zeros_like(prompts.attention_mask, dtype=torch.bool) for _ in range(2))
    queries[:, -1], keys[:, -2] = True, True
    settings = {"do_sample": False, "max_new_tokens": 4, "min_new_tokens": 4}
    settings |= {"output_logits": True, "return_dict_in_generate": True}

    def logits(**more):
        return torch.stack(vlm.model.generate(**prompts.inputs, **settings, **more).logits)

    free = logits()
    with block_attention(vlm.parts, queries, keys, answer_queries=True):
        cached, anew = logits(), logits(use_cache=False)
    torch.testing.assert_close(cached, anew, atol=1e-4, rtol=1e-4)
    assert (cached - free).abs().amax((1, 2)).min() > 1e-3


@pytest.mark.parametrize("kind", ["llama", "llava"])
@torch.no_grad()
def test_answer_positions_are_blocked_only_on_request(kind):
    vlm = small_vlm(kind)
    prompts = vlm.prompts()
    last = torch.zeros_like(prompts.attention_mask, dtype=torch.bool)
    last[:, -1] = True
    keys, length = prompts.image, prompts.input_ids.shape[1]
    inputs = prompts.forward_inputs(torch.tensor([[7, 9], [8, 11]]))
    for wanted in (True, False):
        with implementation(vlm, "eager"), recorded_weights(vlm) as found:
            with block_attention(vlm.parts, last, keys, [0], answer_queries=wanted):
                vlm.model(**inputs)
        weights = dict(found)[vlm.parts.attentions[0]]
        to_keys = weights * torch.nn.functional.pad(keys, (0, 2))[:, None, None]
        assert (to_keys[:, :, length - 1] == 0).all()
        assert (to_keys[:, :, length:].sum(-1) == 0).all() == wanted
        assert (weights[:, :, length + 1, length] > 0).all()  # what was answered is no key of the block


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_position_keeps_itself(kind):
    vlm = small_vlm(kind)
    everything = torch.ones_like(vlm.prompts().attention_mask, dtype=torch.bool)
    for name in IMPLEMENTATIONS:
        with implementation(vlm, name), block_attention(vlm.parts, everything, everything):
            assert not vlm.model(**vlm.full_inputs()).logits.isnan().any()


def test_nested_blocks_add_up_and_leave_no_hook():
    vlm = small_vlm("llama")
    queries, keys = some_groups(vlm, vlm.prompts())
    rest = keys.roll(1, dims=1) & ~keys
    with torch.no_grad():
        with block_attention(vlm.parts, queries, keys | rest, [0]):
            together = vlm.model(**vlm.full_inputs()).logits
        with block_attention(vlm.parts, queries, keys, [0]), block_attention(vlm.parts, queries, rest, [0]):
            torch.testing.assert_close(vlm.model(**vlm.full_inputs()).logits, together)
    with pytest.raises(RuntimeError, match="on purpose"), block_attention(vlm.parts, queries, keys):
        raise RuntimeError("on purpose")
    assert not any(module._forward_pre_hooks for module in vlm.parts.attentions)


@pytest.mark.parametrize("layers", [[3], [-1], [0, 9], []])
def test_layers_that_do_not_exist(layers):
    vlm = small_vlm("llama")
    queries, keys = some_groups(vlm, vlm.prompts())
    with pytest.raises(ValueError, match=r"layers=.* reaches outside of the 3 layers: name some of 0 to 2"):
        with block_attention(vlm.parts, queries, keys, layers):
            pass
    assert check_layers([2, 0, 2], 3) == [0, 2]


def test_bad_masks():
    vlm = small_vlm("llama")
    queries, keys = some_groups(vlm, vlm.prompts())
    for wrong in (queries.long(), queries[:, 1:], queries[0]):
        with pytest.raises(ValueError, match="give two bool tensors"):
            with block_attention(vlm.parts, wrong, keys):
                pass
    with torch.no_grad(), pytest.raises(ValueError, match="for 2 prompts, but the model runs 3"):
        with block_attention(vlm.parts, queries, keys):
            vlm.model(**vlm.full_inputs(3))


@torch.no_grad()
def test_a_decoder_left_with_nothing_is_an_error():
    vlm = small_vlm("t5")
    everything = torch.ones_like(vlm.prompts().attention_mask, dtype=torch.bool)
    for name in IMPLEMENTATIONS:
        with implementation(vlm, name), pytest.raises(ValueError, match="nothing of a prompt to attend to"):
            with block_attention(vlm.parts, ~everything, everything, answer_queries=True):
                vlm.model(**vlm.full_inputs())


@pytest.fixture
def unfit_implementation():
    """An attention implementation that can neither return weights nor take a mask for each pair."""

    def refuse(*args, **kwargs):
        raise AssertionError("this implementation must not be called")

    AttentionInterface.register("unfit", refuse)
    AttentionMaskInterface.register("unfit", eager_mask)
    yield "unfit"
    del AttentionInterface._global_mapping["unfit"], AttentionMaskInterface._global_mapping["unfit"]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_an_unfit_implementation_is_exchanged_meanwhile_and_that_is_said_once(kind, unfit_implementation, monkeypatch):
    import poise.evaluation.probing.attention_backends as module

    said = []
    monkeypatch.setattr(type(module.logger), "warning_once", lambda self, text: said.append(text), raising=False)
    vlm = small_vlm(kind)
    queries, keys = some_groups(vlm, vlm.prompts())
    with implementation(vlm, "eager"), block_attention(vlm.parts, queries, keys, [0]):
        expected = vlm.model(**vlm.full_inputs()).logits
    assert said == []
    with implementation(vlm, unfit_implementation):
        with block_attention(vlm.parts, queries, keys, [0]):
            torch.testing.assert_close(vlm.model(**vlm.full_inputs()).logits, expected)
        assert {stack.config._attn_implementation for stack in vlm.parts.stacks} == {unfit_implementation}
    assert len(said) == 1 and "'unfit' cannot do what is measured here; 'eager' takes its place" in said[0]


def test_the_message_is_said_once(caplog):
    vlm = small_vlm("llama")
    with implementation(vlm, "sdpa"):
        for _ in range(3):
            with attention_implementation(vlm.parts.stacks, ("eager",)):
                assert vlm.parts.reader.config._attn_implementation == "eager"
    assert len([r for r in caplog.records if "takes its place" in r.getMessage()]) <= 1


@torch.no_grad()
def test_answers_change_under_a_block():
    vlm = small_vlm("llama")
    prompts = vlm.prompts()
    queries, keys = some_groups(vlm, prompts)
    with block_attention(vlm.parts, queries, keys, answer_queries=True):
        blocked = greedy_answers(prompts, max_new_tokens=8)
    assert blocked != greedy_answers(prompts, max_new_tokens=8)
