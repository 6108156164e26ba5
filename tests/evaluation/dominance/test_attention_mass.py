"""Attention on the prompt: equal to full attention maps, without ever holding them."""

import logging

import pytest
import torch
from small_vlms import KINDS, QUESTIONS, TAGS, pictures, poise_around, small_vlm
from torch.profiler import ProfilerActivity, profile
from transformers import GPT2Config, MistralConfig

from poise.evaluation.dominance.attention import attention_on_prompt
from poise.evaluation.probing.model_parts import attention_backend
from poise.evaluation.probing.visual_prompts import read_prompts

pytestmark = pytest.mark.numerics

ANSWERS = [[7, 9, 11], [8]]


@torch.no_grad()
def full_maps(vlm, prompts, answer, row):
    """Attention (L, T) of the generating positions of one prompt, from whole maps of one forward pass."""
    mask, embeddings = prompts.attention_mask[row : row + 1], prompts.embeddings[row : row + 1]
    with attention_backend(vlm.model):
        if vlm.kind == "t5":
            decoder_ids = torch.tensor([[0, *answer[:-1]]])
            found = vlm.model(
                inputs_embeds=embeddings, attention_mask=mask, decoder_input_ids=decoder_ids, output_attentions=True
            ).cross_attentions
            return torch.stack(found)[:, 0].mean((1, 2))  # (L, T)
        length = mask.shape[1]
        spoken = vlm.model.get_input_embeddings()(torch.tensor([answer[:-1]], dtype=torch.long))
        mask = torch.cat([mask, torch.ones(1, len(answer) - 1, dtype=mask.dtype)], dim=1)
        maps = vlm.parts.reader(
            inputs_embeds=torch.cat([embeddings, spoken], dim=1),
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp_min(0),
            output_attentions=True,
        ).attentions
    return torch.stack(maps)[:, 0, :, length - 1 :, :length].mean((1, 2))  # (L, T)


@pytest.mark.parametrize("kind", KINDS)
def test_is_what_whole_maps_say(kind, monkeypatch):
    vlm = small_vlm(kind)
    prompts = vlm.prompts()
    mass = attention_on_prompt(prompts, ANSWERS)  # (L, B, T)
    for row, answer in enumerate(ANSWERS):
        torch.testing.assert_close(mass[:, row], full_maps(vlm, prompts, answer, row), rtol=1e-4, atol=1e-6)
    assert (mass[:, prompts.attention_mask == 0] == 0).all()
    monkeypatch.setattr("poise.evaluation.dominance.attention._CHUNK", 1)
    torch.testing.assert_close(attention_on_prompt(prompts, ANSWERS), mass)


def test_an_empty_answer_was_generated_by_the_last_position():
    prompts = small_vlm("llama").prompts()
    with_empty, with_one = (attention_on_prompt(prompts, [[], answer]) for answer in ([], [9]))
    torch.testing.assert_close(with_empty, with_one)
    torch.testing.assert_close(with_empty.sum(-1), torch.ones(3, 2))  # it attends to the prompt alone


def test_weights_come_from_eager_for_that_call_and_this_is_said_once(caplog):
    vlm = small_vlm("llama")
    reader = vlm.parts.reader
    before = reader.config._attn_implementation
    reader.set_attn_implementation("sdpa")
    logging.getLogger("transformers").propagate = True
    try:
        from poise.evaluation.probing import model_parts as module

        module.logger.warning_once.cache_clear()
        with caplog.at_level("WARNING"):
            for _ in range(2):
                attention_on_prompt(vlm.prompts(), ANSWERS)
        assert reader.config._attn_implementation == "sdpa"
    finally:
        reader.set_attn_implementation(before)
        logging.getLogger("transformers").propagate = False
    assert (
        sum("'sdpa' cannot do what is measured here; 'eager' takes its place" in line for line in caplog.messages) == 1
    )


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
        return read_prompts(vlm.parts, vlm.processor, pictures(1), [question], TAGS[:1])

    def whole_maps(prompts):
        with torch.no_grad(), attention_backend(vlm.model):
            return vlm.parts.reader(inputs_embeds=prompts.embeddings, output_attentions=True).attentions

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
