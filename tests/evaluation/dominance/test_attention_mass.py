"""Attention on the prompt: equal to full attention maps, without ever holding them."""

import pytest
import torch
from small_vlms import KINDS, QUESTIONS, TAGS, noise_images, poise_around, small_vlm
from torch.profiler import ProfilerActivity, profile
from transformers import GPT2Config, MistralConfig

from poise.evaluation.probing.answers import attention_on_prompt
from poise.evaluation.probing.attention_backends import attention_implementation
from poise.evaluation.probing.prompt_reading import read_prompts

pytestmark = pytest.mark.numerics

ANSWERS = [[7, 9, 11], [8]]


@torch.no_grad()
def full_maps(vlm, prompts, answer, row):
    """Attention (L, T) of the generating positions of one prompt, from whole maps of one forward pass."""
    length = prompts.input_ids.shape[1]
    tokens = torch.tensor([answer] * len(prompts))
    with attention_implementation(prompts.parts.stacks, ("eager",)):
        if vlm.kind == "t5":
            begun = torch.nn.functional.pad(tokens[:, :-1], (1, 0))
            found = vlm.model(**prompts.inputs, decoder_input_ids=begun, output_attentions=True).cross_attentions
            return torch.stack(found)[:, row].mean((1, 2))  # (L, T)
        inputs = prompts.forward_inputs(tokens[:, :-1])
        maps = vlm.model(**inputs, output_attentions=True, use_cache=False).attentions
    return torch.stack(maps)[:, row, :, length - 1 :, :length].mean((1, 2))  # (L, T)


@pytest.mark.parametrize("kind", KINDS)
def test_is_what_whole_maps_say(kind, monkeypatch):
    vlm = small_vlm(kind)
    prompts = vlm.prompts()
    mass = attention_on_prompt(prompts, ANSWERS)  # (L, B, T)
    for row, answer in enumerate(ANSWERS):
        torch.testing.assert_close(mass[:, row], full_maps(vlm, prompts, answer, row), rtol=1e-4, atol=1e-6)
    assert (mass[:, prompts.attention_mask == 0] == 0).all()
    monkeypatch.setattr("poise.evaluation.probing.attention_backends._BLOCK", 1)
    torch.testing.assert_close(attention_on_prompt(prompts, ANSWERS), mass)


def test_an_empty_answer_was_generated_by_the_last_position():
    prompts = small_vlm("llama").prompts()
    with_empty, with_one = (attention_on_prompt(prompts, [[], answer]) for answer in ([], [9]))
    torch.testing.assert_close(with_empty, with_one)
    torch.testing.assert_close(with_empty.sum(-1), torch.ones(3, 2))  # it attends to the prompt alone


def test_the_models_own_attention_is_put_back():
    vlm = small_vlm("llama")
    reader = vlm.parts.reader
    before = reader.config._attn_implementation
    for name in ("sdpa", "eager"):
        reader.set_attn_implementation(name)
        attention_on_prompt(vlm.prompts(), ANSWERS)
        assert reader.config._attn_implementation == name
    reader.set_attn_implementation(before)


def peak_bytes(call):
    """Most bytes that were held at one time during a call."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def test_memory_grows_with_tokens_not_with_their_square():
    vlm = small_vlm("llama")

    def prompts_of(words):
        question = " ".join([QUESTIONS[0]] * words)
        return read_prompts(vlm.parts, vlm.processor, noise_images(1), [question], TAGS[:1])

    def whole_maps(prompts):
        with torch.no_grad(), attention_implementation(prompts.parts.stacks, ("eager",)):
            return vlm.model(**prompts.inputs, output_attentions=True).attentions

    short, long = prompts_of(8), prompts_of(36)
    factor = long.attention_mask.shape[1] / short.attention_mask.shape[1]
    assert 3 < factor < 4
    ours = [peak_bytes(lambda p=p: attention_on_prompt(p, [[7, 9, 11]])) for p in (short, long)]
    maps = [peak_bytes(lambda p=p: whole_maps(p)) for p in (short, long)]
    assert min(*ours, *maps) > 0
    assert ours[1] < 1.25 * factor * ours[0]  # linear
    assert maps[1] > 1.6 * factor * maps[0]  # what is avoided: quadratic
    assert ours[1] < maps[1] / 2


FAMILIES = {
    # Learned absolute positions: left padding must not shift them.
    "gpt2": (GPT2Config, {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    # A window that is shorter than the prompt: the keys are its last positions.
    "mistral": (MistralConfig, {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2,
                                "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 6}),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_absolute_positions_and_sliding_windows(family):
    config_class, shape = FAMILIES[family]
    vlm = poise_around(config_class, **shape)
    prompts = vlm.prompts()
    assert (prompts.attention_mask == 0).any()  # the shorter one is padded on the left
    mass = attention_on_prompt(prompts, ANSWERS)  # (L, B, T)
    for row, answer in enumerate(ANSWERS):
        torch.testing.assert_close(mass[:, row], full_maps(vlm, prompts, answer, row), rtol=1e-4, atol=1e-6)
