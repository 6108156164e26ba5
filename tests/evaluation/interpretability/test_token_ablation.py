"""Replacing image tokens: exactly those, by exactly that; rivals of equal number; what is counted."""

import json

import pytest
import torch
from small_vlms import KINDS, image_tokens, noise_images, object_records, small_vlm

import poise.evaluation.interpretability.token_ablation as module
from poise.evaluation.interpretability.objects import ObjectTokens
from poise.evaluation.interpretability.token_ablation import (
    TokenAblation,
    ablated,
    integrated_gradients,
    mean_image_token,
)
from poise.evaluation.probing.answers import answer_log_probabilities
from poise.evaluation.probing.token_groups import highest_tokens, random_tokens
from poise.evaluation.sample_donors import SwappableRecords

pytestmark = pytest.mark.numerics

ANSWERS = [[7, 9], [12]]


def decoder_of(prompts):
    return {"decoder_input_ids": torch.tensor([[0, 7]] * len(prompts))} if prompts.parts.is_encoder_decoder else {}


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_nothing_replaced_is_the_identity(kind):
    vlm = small_vlm(kind)
    prompts = vlm.prompts()
    nothing = torch.zeros_like(prompts.image)
    changed = prompts.logits(ablated(prompts, nothing, torch.full((48,), 7.0)), **decoder_of(prompts))
    own = vlm.model(**{**prompts.forward_inputs(), **decoder_of(prompts)}, use_cache=False).logits
    assert torch.equal(changed, own)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vector", [None, torch.arange(48.0)])
@torch.no_grad()
def test_exactly_the_chosen_tokens_become_exactly_the_vector(kind, vector):
    prompts = small_vlm(kind).prompts()
    chosen = prompts.image & (torch.rand(prompts.image.shape) < 0.5)
    read = []
    handle = prompts.parts.layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: read.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    prompts.logits(**decoder_of(prompts))
    prompts.logits(ablated(prompts, chosen, vector), **decoder_of(prompts))
    handle.remove()
    assert torch.equal(read[1][~chosen], read[0][~chosen])
    assert torch.equal(read[1][chosen], (torch.zeros(48) if vector is None else vector).expand(int(chosen.sum()), -1))


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_token_is_the_mean_over_images_and_patches(kind):
    vlm = small_vlm(kind)
    records = [{"image": image, "tags": [("dog", 0.5)]} for image in noise_images(5)]
    records.insert(2, {"image": None})
    found = mean_image_token(vlm.model, vlm.processor, records, batch_size=2, progress=False)
    tokens = []
    for record in records:
        if record["image"] is not None:
            tags = [] if kind == "llava" else record["tags"]
            prompts = module.read_prompts(vlm.parts, vlm.processor, [record["image"]], ["?"], [tags])
            tokens.append(prompts.image_rows(prompts.image))
    torch.testing.assert_close(found, torch.cat(tokens).mean(0))
    limited = mean_image_token(vlm.model, vlm.processor, records, limit=1, progress=False)
    torch.testing.assert_close(limited, tokens[0].mean(0))
    with pytest.raises(ValueError, match="records holds no image"):
        mean_image_token(vlm.model, vlm.processor, [{"image": None}], progress=False)


def test_boxes_become_places_in_the_sequence():
    vlm = small_vlm("llama")
    prompts, tokens = vlm.prompts(), ObjectTokens(vlm.processor.image_processor)
    corner = tokens(prompts, 0, noise_images(1)[0], [0, 0, 3, 3])
    assert torch.equal(corner, image_tokens(prompts, [0])[0])
    assert torch.equal(tokens(prompts, 1, noise_images(1)[0], [20, 12, 3, 3], buffer=1), prompts.image[1])
    assert torch.equal(tokens.on_image(prompts, noise_images(2)), prompts.image)


def test_random_tokens_depend_on_the_sample_alone():
    vlm, counts = small_vlm("llama"), torch.tensor([2, 5, 0])
    image = vlm.prompts(3).image
    chosen = random_tokens(image, counts, ["a", "b", "c"], seed=3)
    assert chosen.sum(-1).tolist() == [2, 5, 0] and not (chosen & ~image).any()
    padded = torch.nn.functional.pad(image[[1, 0]], (4, 0))  # in a batch with a longer prompt
    again = random_tokens(padded, counts[[1, 0]], ["b", "a"], seed=3)
    assert torch.equal(again[:, 4:], chosen[[1, 0]])
    assert not torch.equal(random_tokens(image, counts, ["a", "b", "c"], seed=4), chosen)
    many = [random_tokens(image, counts, [f"{i}"] * 3)[1][image[1]] for i in range(200)]
    assert (torch.stack(many).float().mean(0) - 5 / 9).abs().max() < 0.15  # every token is as likely


def test_highest_tokens():
    scores = torch.tensor([[9.0, 1.0, 3.0, 2.0], [9.0, 5.0, 5.0, 5.0]])
    everything = torch.ones(2, 4, dtype=torch.bool)
    assert highest_tokens(scores, torch.tensor([2, 1]), everything).tolist() == [
        [True, False, True, False],
        [True, False, False, False],
    ]
    everything[:, 0] = False
    assert highest_tokens(scores, torch.tensor([2, 4]), everything).tolist() == [
        [False, False, True, True],
        [False, True, True, True],
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_integrated_gradients_add_up_to_the_difference(kind):
    prompts = small_vlm(kind).prompts()
    baseline = prompts.image_rows(prompts.image).mean(0)
    found = integrated_gradients(prompts, ANSWERS, baseline, steps=64)
    with torch.no_grad():
        with_tokens = answer_log_probabilities(prompts, ANSWERS)
        without = answer_log_probabilities(prompts, ANSWERS, ablated(prompts, prompts.image, baseline))
    torch.testing.assert_close(found.sum(-1), with_tokens - without, atol=2e-2, rtol=2e-2)
    assert found.shape == prompts.image.shape and not found.requires_grad and not found[~prompts.image].any()
    coarse = integrated_gradients(prompts, ANSWERS, baseline, steps=2)
    assert (coarse.sum(-1) - (with_tokens - without)).abs().sum() > (
        found.sum(-1) - (with_tokens - without)
    ).abs().sum()


def test_a_token_that_is_the_baseline_adds_nothing():
    prompts = small_vlm("llama").prompts()
    baseline = prompts.image_rows(image_tokens(prompts, [4]))[0]  # the fifth token of the first image
    found = integrated_gradients(prompts, ANSWERS, baseline, steps=3)[0, prompts.image[0]]
    assert found[4] == 0 and (found[:4] != 0).all()
    with pytest.raises(ValueError, match="steps=0"):
        integrated_gradients(prompts, ANSWERS, steps=0)


def test_parameters_get_no_gradient():
    vlm = small_vlm("llama")
    integrated_gradients(vlm.prompts(), ANSWERS, steps=1)
    assert all(parameter.grad is None for parameter in vlm.model.parameters())


class SeesOnlyTheObject:
    """Stands in for `greedy_answers`: right as long as no token under the object is replaced."""

    def __init__(self, vlm):
        self.vlm = vlm
        self.words = vlm.processor.tokenizer.convert_tokens_to_ids
        self.calls = 0

    def __call__(self, prompts, changes=(), max_new_tokens=16):
        self.calls += 1
        if not changes:
            return [self.words(["a", "dog", "yes", "red"]) for _ in range(len(prompts))]
        middle = image_tokens(prompts, [4])  # where the object lies
        untouched = ~(changes[0].places & middle).any(-1)
        return [self.words(["yes", "red", "dog"] if seen else ["no", "blue"]) for seen in untouched.tolist()]


def dog_records(count):
    return [
        {
            "id": f"r{number}", "image": image, "task": "vqa", "question": "what color is the dog ?",
            "answers": ["a red"], "bbox": [15, 12, 9, 7], "tags": [], "metadata": {"object": "dog"},
        }
        for number, image in enumerate(noise_images(count))
    ]  # fmt: skip


def test_what_is_counted(monkeypatch, tmp_path):
    vlm = small_vlm("llama")
    stand_in = SeesOnlyTheObject(vlm)
    monkeypatch.setattr(module, "greedy_answers", stand_in)
    records = dog_records(12)
    ablation = TokenAblation(
        forms=("generative", "polling"),
        buffers=(0, 1),
        batch_size=5,
        progress=False,
        output_dir=tmp_path,
        gradient_steps=1,
    )
    found = ablation(vlm.model, vlm.processor, records)
    assert ablation.primary_metric in found and found["skipped"] == 0
    assert found["tokens_0"] == 1 and found["tokens_1"] == 9
    for form in ("generative", "polling"):
        assert found[f"{form}_samples"] == 12 and found[f"{form}_clean"] == 1
        assert found[f"{form}_drop_object_0"] == 1 and found[f"{form}_drop_random_0"] < 0.6
        # All nine tokens, whoever chose them.
        assert {found[f"{form}_drop_{name}_1"] for name in ("object", "random", "register", "gradient")} == {1.0}
        gain = found[f"{form}_object_over_random_0"]
        assert gain == pytest.approx(1 - found[f"{form}_drop_random_0"])
        assert found[f"{form}_object_over_random_0_low"] <= gain <= found[f"{form}_object_over_random_0_high"]
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert rows[3]["answers"]["polling"]["object_0"] == "no blue" and rows[3]["tokens"] == {"0": 1, "1": 9}

    calls = stand_in.calls
    assert ablation(vlm.model, vlm.processor, records) == found  # everything is read back
    assert stand_in.calls == calls
    with pytest.raises(ValueError, match="made with other replaced tokens"):
        TokenAblation(
            torch.ones(48), forms=("generative", "polling"), buffers=(0, 1), progress=False, output_dir=tmp_path,
            gradient_steps=1,
        )(vlm.model, vlm.processor, records)  # fmt: skip


def test_what_guessing_is_worth(monkeypatch):
    """A stand-in that knows whose image it is shown, and says yes to all of them but one."""
    vlm, records = small_vlm("llama"), dog_records(6)
    words = vlm.processor.tokenizer.convert_tokens_to_ids

    def answers(prompts, changes=(), max_new_tokens=16):
        shown = prompts.image_rows(image_tokens(prompts, [0]))  # (B, D)
        # Which of the six images it is: the nearest, since kernels round otherwise for another size of the batch.
        nearest = torch.cdist(shown, every_first).argmin(-1)  # (B,)
        return [words(["no"] if index == 2 else ["yes"]) for index in nearest.tolist()]

    def first_token(record):
        prompts = module.read_prompts(vlm.parts, vlm.processor, [record["image"]], ["?"])
        return prompts.image_rows(prompts.image)[0]

    every_first = torch.stack([first_token(record) for record in records])  # (6, D)
    monkeypatch.setattr(module, "greedy_answers", answers)
    donors = [record["donors"]["image"] for record in SwappableRecords(records, seed=3, what=("image",))]
    guessed = sum(donor is not records[2]["image"] for donor in donors) / 6
    for batch_size in (1, 4):
        ablation = TokenAblation(
            forms=("polling",), rivals=(), buffers=(0,), seed=3, batch_size=batch_size, progress=False
        )
        found = ablation(vlm.model, vlm.processor, iter(records))
        assert found["polling_clean"] == pytest.approx(5 / 6)
        assert found["polling_other_picture"] == pytest.approx(guessed) and "polling_other_picture_low" in found
    found = ablation(vlm.model, vlm.processor, records[:1])
    assert found["polling_clean"] == 1 and "polling_other_picture" not in found


def test_what_is_not_identified_anyway_is_left_out(monkeypatch):
    vlm = small_vlm("llama")
    stand_in = SeesOnlyTheObject(vlm)
    monkeypatch.setattr(module, "greedy_answers", stand_in)
    records = dog_records(4)
    records[1]["answers"] = records[2]["answers"] = ["green"]
    for record in records[:1] + records[3:]:
        record["answers"] = ["a dog yes red"]
    found = TokenAblation(forms=("vqa",), rivals=(), buffers=(0,), progress=False)(vlm.model, vlm.processor, records)
    assert found["vqa_clean"] == 0.5 and found["vqa_drop_object_0"] == 1 and "vqa_drop_random_0" not in found
    for record in records:
        record["answers"] = ["green"]
    found = TokenAblation(forms=("vqa",), progress=False)(vlm.model, vlm.processor, records)
    assert found["vqa_clean"] == 0 and not any("drop" in key for key in found)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_runs(kind):
    vlm = small_vlm(kind)
    records = object_records(3)
    mean = mean_image_token(vlm.model, vlm.processor, records, progress=False)
    found = TokenAblation(mean, buffers=(0,), gradient_steps=2, batch_size=2, progress=False)(
        vlm.model, vlm.processor, records
    )
    assert found["generative_samples"] == found["polling_samples"] == found["vqa_samples"] == 3


def test_cropped_objects_are_skipped_and_counted():
    vlm = small_vlm("llava")  # crops 40 × 30 to the middle 30 columns
    records = object_records(3)
    records[0]["bbox"] = [0, 0, 3, 3]
    found = TokenAblation(buffers=(0,), forms=("vqa",), progress=False)(vlm.model, vlm.processor, records)
    assert found["skipped"] == 1 and found["vqa_samples"] == 2


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"forms": ["talk"]}, "forms holds 'talk': choose among generative, polling, vqa"),
        ({"rivals": ["best"]}, "rivals holds 'best'"),
        ({"buffers": [-1]}, r"buffers=\[-1\]"),
        ({"forms": []}, r"forms=\[\]"),
    ],
)
def test_bad_arguments(arguments, text):
    with pytest.raises(ValueError, match=text):
        TokenAblation(**arguments)


def test_records_without_objects_are_an_error():
    vlm = small_vlm("llama")
    records = [{"id": "x", "image": noise_images(1)[0], "task": "vqa", "question": "what ?", "answers": ["red"]}]
    with pytest.raises(ValueError, match="records holds nothing for token ablation"):
        TokenAblation(progress=False)(vlm.model, vlm.processor, records)


@torch.no_grad()
def test_of_a_description_the_name_is_what_gradients_explain():
    vlm = small_vlm("llama")
    tokenizer = vlm.processor.tokenizer
    answer = tokenizer.convert_tokens_to_ids("a blue cat , a red ball .".split())
    probe = module.object_probe(object_records(2)[1])
    assert probe is not None and probe.name == "red ball"
    start, stop = TokenAblation()._target(tokenizer, "generative", probe, answer)
    assert tokenizer.decode(answer[start:stop]).split() == ["red", "ball"]
    assert TokenAblation()._target(tokenizer, "vqa", probe, answer) == (0, 8)
