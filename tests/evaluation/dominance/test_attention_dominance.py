"""MDI and AEI by hand."""

import numpy as np
import pytest
import torch
from small_vlms import KINDS, object_records, small_vlm

from poise.evaluation.dominance import attention as attention_dominance
from poise.evaluation.dominance.attention import GROUPS, AttentionDominance, layer_ranges, prompt_groups

pytestmark = pytest.mark.numerics


def evaluate(vlm, count=4, **options):
    return AttentionDominance(progress=False, batch_size=2, **options)(vlm.model, vlm.processor, object_records(count))


@pytest.mark.parametrize("kind", KINDS)
def test_attention_spread_evenly_is_one_everywhere(kind, monkeypatch):
    monkeypatch.setattr(
        attention_dominance,
        "attention_on_prompt",
        lambda prompts, answers: (prompts.attention_mask / 100.0).expand(2, -1, -1),
    )
    found = evaluate(small_vlm(kind))
    indices = [value for key, value in found.items() if key.startswith(("mdi", "aei"))]
    assert len(indices) > 20 and np.allclose(indices, 1.0)
    assert found["attention_image"] == pytest.approx(
        found["tokens_image"] / sum(found[f"tokens_{group}"] for group in GROUPS)
    )


def test_by_hand(monkeypatch):
    """One layer looks at the image three times as hard per token, the other at nothing but the question."""

    def attention(prompts, answers):
        groups = prompt_groups(prompts)
        first = 3.0 * groups["image"] + (prompts.attention_mask.bool() & ~groups["image"])
        return torch.stack([first, groups["question"].float()])

    monkeypatch.setattr(attention_dominance, "attention_on_prompt", attention)
    found = evaluate(small_vlm("llama"))
    assert found["mdi_layer_0"] == pytest.approx(1 / 3) and found["aei_image_layer_0"] > 1 > found["aei_text_layer_0"]
    assert "mdi_layer_1" not in found and "aei_image_layer_1" not in found  # the image got nothing
    image, total = found["tokens_image"], sum(found[f"tokens_{group}"] for group in GROUPS)
    share = 3 * image / (3 * image + total - image)
    assert found["aei_image_layer_0"] == pytest.approx(share / (image / total))
    assert found["mdi_layer_0_low"] <= found["mdi_layer_0"] <= found["mdi_layer_0_high"]


def test_groups_cover_the_prompt_once():
    for kind in KINDS:
        prompts = small_vlm(kind).prompts()
        groups = torch.stack(list(prompt_groups(prompts).values()))  # (G, B, T)
        assert torch.equal(groups.sum(0), prompts.attention_mask)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_runs(kind):
    found = evaluate(small_vlm(kind), 3)
    assert found["mdi"] > 0 and found["samples"] == 3 and found["layers"] == 3
    assert {f"mdi_{third}" for third in ("early", "middle", "late")} <= set(found)
    assert ("aei_soft_prompt" in found) == (kind != "llava")
    assert AttentionDominance.primary_metric in found and AttentionDominance.greater_is_better is False


def test_thirds():
    ranges = layer_ranges(8)
    assert [ranges[f"_{name}"] for name in ("early", "middle", "late")] == [slice(0, 3), slice(3, 5), slice(5, 8)]
    assert layer_ranges(1).keys() == {"", "_middle", "_layer_0"} or "_late" in layer_ranges(1)
    assert (
        sum(part.stop - part.start for name, part in layer_ranges(2).items() if name in ("_early", "_middle", "_late"))
        == 2
    )


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    vlm = small_vlm("llama")
    whole = evaluate(vlm)
    plain, calls = attention_dominance.attention_on_prompt, []

    def fails_on_second(prompts, answers):
        calls.append(len(prompts))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(prompts, answers)

    monkeypatch.setattr(attention_dominance, "attention_on_prompt", fails_on_second)
    with pytest.raises(KeyboardInterrupt):
        evaluate(vlm, output_dir=tmp_path)
    assert evaluate(vlm, output_dir=tmp_path) == pytest.approx(whole)
    assert calls == [2, 2, 2]


def test_records_without_pictures_are_an_error():
    records = [{**record, "image": None} for record in object_records(2)]
    vlm = small_vlm("llama")
    with pytest.raises(ValueError, match="records holds nothing for attention"):
        AttentionDominance(progress=False)(vlm.model, vlm.processor, records)


def test_without_first_leaves_out_what_the_first_positions_draw(monkeypatch):
    """A sink at the first position: part of the text in `mdi`, and of nothing in `mdi_without_first`."""

    def attention(prompts, answers):
        groups = prompt_groups(prompts)
        weights = 50.0 * groups["first"] + 2.0 * groups["image"] + (prompts.attention_mask.bool() & ~groups["image"])
        return weights[None]

    monkeypatch.setattr(attention_dominance, "attention_on_prompt", attention)
    found = evaluate(small_vlm("llava"))
    counts = {group: found[f"tokens_{group}"] for group in GROUPS}
    assert counts["first"] > 0
    text = sum(counts.values()) - counts["image"]
    assert found["mdi_without_first"] == pytest.approx(1 / 2)
    assert found["mdi"] == pytest.approx((text + 50 * counts["first"]) / text / 2)
