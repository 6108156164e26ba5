"""Where things stand in a prompt, and that reading prompts as embeddings changes nothing."""

import pytest
import torch
from small_vlms import KINDS, QUESTIONS, TAGS, image_tokens, noise_images, small_vlm
from transformers import LlamaConfig, LlamaForCausalLM

from poise.evaluation.probing.answers import answer_log_probabilities, answer_texts, greedy_answers
from poise.evaluation.probing.parts import model_parts
from poise.evaluation.probing.prompt_reading import read_prompts
from poise.evaluation.probing.token_groups import GROUPS, token_groups
from poise.processing.batching.collators import GenerationCollator

pytestmark = pytest.mark.numerics


def model_inputs(vlm, count):
    """The same prompts the ordinary way."""
    if vlm.kind == "llava":
        texts = [f"USER : <image> {question} ASSISTANT :" for question in QUESTIONS[:count]]
        return vlm.processor(
            images=noise_images(count), text=texts, padding=True, padding_side="left", return_tensors="pt"
        )
    records = [
        {"task": "vqa", "question": question, "image": image, "tags": tags}
        for question, image, tags in zip(QUESTIONS[:count], noise_images(count), TAGS, strict=False)
    ]
    return GenerationCollator(vlm.processor, is_encoder_decoder=vlm.kind == "t5")(records)[0]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_greedy_answers_are_those_of_generate(kind):
    vlm = small_vlm(kind)
    inputs, prompts = model_inputs(vlm, 3), vlm.prompts(3)
    settings = {"do_sample": False, "max_new_tokens": 6}
    tokens = vlm.model.generate(**inputs, **settings)
    tokens = tokens[:, 1 if kind == "t5" else inputs["input_ids"].shape[1] :]
    expected = vlm.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    answers = greedy_answers(prompts, max_new_tokens=6)
    assert answer_texts(vlm.processor, answers) == [text.strip() for text in expected]
    assert torch.equal(prompts.attention_mask, inputs["attention_mask"])
    # Another image, another prompt: the image is really read.
    other = read_prompts(vlm.parts, vlm.processor, noise_images(3, seed=9), QUESTIONS, list(TAGS))
    assert not torch.equal(other.features.rows, prompts.features.rows)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_log_probabilities_are_the_models_own_loss(kind):
    vlm = small_vlm(kind)
    inputs, prompts = model_inputs(vlm, 2), vlm.prompts(2)
    answers = [[7, 9, 11], [12]]
    found = answer_log_probabilities(prompts, answers)
    labels = torch.tensor([[7, 9, 11], [12, -100, -100]])
    if kind == "t5":
        logits = vlm.model(**inputs, labels=labels).logits
    else:
        mask = torch.cat([inputs["attention_mask"], (labels > 0).long()], dim=1)
        whole = {
            **inputs,
            "input_ids": torch.cat([inputs["input_ids"], labels.clamp_min(0)], dim=1),
            "attention_mask": mask,
        }
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        logits = vlm.model(**whole, position_ids=positions).logits[:, inputs["input_ids"].shape[1] - 1 : -1]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none").sum(-1)
    torch.testing.assert_close(found, -losses)
    tail = answer_log_probabilities(prompts, answers, counted_from=[1, 0])
    first = answer_log_probabilities(prompts, [[7], [12]])
    torch.testing.assert_close(tail[0] + first[0], found[0])


def test_an_empty_answer_has_no_probability():
    with pytest.raises(ValueError, match=r"answers\[1\] is empty"):
        answer_log_probabilities(small_vlm("llama").prompts(), [[7], []])


@pytest.mark.parametrize("kind", KINDS)
def test_groups_share_out_the_prompt(kind):
    vlm = small_vlm(kind)
    prompts = vlm.prompts(3)
    groups = token_groups(prompts, image_tokens(prompts, [0, 4]))
    assert tuple(groups) == GROUPS
    together = torch.stack(list(groups.values())).sum(0)  # (B, T)
    attended = prompts.attention_mask.bool()
    first_text = attended & (attended.cumsum(-1) == 1) & ~prompts.placeholders
    assert torch.equal(together == 1, attended & ~first_text) and together.max() == 1
    counts = {name: mask.sum(-1).tolist() for name, mask in groups.items()}
    assert counts["image_object"] == [2, 2, 2] and counts["image_rest"] == [7, 7, 7]
    assert counts["soft_prompt"] == [0 if kind == "llava" else 2] * 3
    # "tags : dog , red ball ." / "tags : cat ." / none
    assert counts["tag_words"] == ([0, 0, 0] if kind == "llava" else [7, 4, 0])
    assert counts["last"] == ([0, 0, 0] if kind == "t5" else [1, 1, 1])


def test_tag_words_are_the_ones_behind_the_image():
    vlm = small_vlm("llama")
    inputs, prompts = model_inputs(vlm, 3), vlm.prompts(3)
    words = [
        vlm.processor.tokenizer.decode(ids[mask])
        for ids, mask in zip(inputs["input_ids"], prompts.tag_words, strict=True)
    ]
    assert [word.split() for word in words] == ["tags : dog , red ball .".split(), "tags : cat .".split(), []]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_norms_are_of_the_vision_towers_features(kind):
    vlm = small_vlm(kind)
    pixels = model_inputs(vlm, 2)["pixel_values"]
    if kind == "llava":
        features = vlm.model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    else:
        features = vlm.model.model.vision_tower(pixels).last_hidden_state
    prompts = vlm.prompts(2)
    norms = prompts.vision_norms()
    torch.testing.assert_close(norms[prompts.image].view(2, 9), features.norm(dim=-1))
    assert not norms[~prompts.image].any()


def test_models_without_images_are_refused():
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    plain = LlamaForCausalLM(LlamaConfig(**shape))
    with pytest.raises(ValueError, match="model=LlamaForCausalLM .llama. cannot be looked into: its forward takes no"):
        model_parts(plain)
    with pytest.raises(ValueError, match="model=Linear is no transformers model"):
        model_parts(torch.nn.Linear(1, 1))


def test_a_processor_of_another_model_is_refused():
    vlm = small_vlm("llama")
    vlm.processor.num_prompt_tokens = 5
    try:
        with pytest.raises(ValueError, match="processor"):
            vlm.prompts().features  # noqa: B018
    finally:
        vlm.processor.num_prompt_tokens = 2
