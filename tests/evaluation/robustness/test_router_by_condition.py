"""The router's weights by condition."""

import pytest
import torch
from small_vlms import object_records, small_vlm

from poise.evaluation.robustness import router_weights as module
from poise.evaluation.robustness.router_weights import RouterByCondition


def test_means_by_condition(monkeypatch):
    vlm, seen = small_vlm("llama"), []

    def weights(model, processor, records, batch_size):
        seen.extend(records)
        darkness = [
            sum(record["image"].convert("L").resize((1, 1)).getpixel((0, 0)) for _ in "1") for record in records
        ]
        return torch.tensor([[value / 255, 1 - value / 255] for value in darkness])

    monkeypatch.setattr(module, "router_weights", weights)
    monkeypatch.setattr(module, "has_router", lambda model: True)
    evaluator = RouterByCondition(degradations=["low_light", "tags_removed"], severity=5, progress=False)
    found = evaluator(vlm.model, vlm.processor, object_records(4))
    assert found["low_light_image_weight"] < 0.3 < found["clean_image_weight"]
    assert found["tags_removed_image_weight"] == pytest.approx(found["clean_image_weight"], abs=0.05)
    assert found["clean_image_weight_low"] <= found["clean_image_weight"] <= found["clean_image_weight_high"]
    assert found["samples"] == 4 and len(seen) == 4 + 4 + 3  # one record has no tags
    assert evaluator.primary_metric in found


def test_every_degradation_of_image_and_tags_by_default():
    assert len(RouterByCondition().degradations) == 12


def test_a_model_without_a_router_is_refused():
    vlm = small_vlm("llava")
    with pytest.raises(ValueError, match="has no information router: give a model whose"):
        RouterByCondition(progress=False)(vlm.model, vlm.processor, object_records(2))
    with pytest.raises(ValueError, match="degradation='smoke'"):
        RouterByCondition(degradations=["smoke"])
