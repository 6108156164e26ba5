"""Each recipe that names Hub backbones runs two steps at their true widths: two layers, random weights, Hub layout."""

import json
from pathlib import Path

import hub_layout
import pytest
import torch

from poise.processing.records.task_record_files import write_task_records
from poise.processing.scenes.scenes import Scenes
from poise.training.sft.checkpoints import load_trained
from poise.training.sft.recipe import load_recipe
from poise.training.sft.stage import run_sft

RECIPES = {
    "siglip2_smollm2_minilm": ({"vision": "siglip2_base", "text": "smollm2_135m", "tag_encoder": "minilm"}, {}),
    # Two layers have three hidden states: the choice of middle layers moves, the aggregator stays.
    "clip_flan_t5_bert": (
        {"vision": "clip_large", "text": "flan_t5_base", "tag_encoder": "bert_base"},
        {"vision_feature_layer": [0, 1, -1]},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_recipe_trains_two_steps_and_its_model_answers(name, tmp_path):
    builders, changes = RECIPES[name]
    backbones = {part: getattr(hub_layout, builder)(tmp_path / builder) for part, builder in builders.items()}
    records = Scenes("train", size=4, tasks=("vqa", "caption")).__getitems__(range(4))
    write_task_records(records, tmp_path / "train.jsonl")
    overrides = {
        **backbones, **changes, "data.train": str(tmp_path / "train.jsonl"), "data.evaluation": None, "max_steps": 2,
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "dataloader_num_workers": 0,
        "eval_strategy": "no", "output_dir": str(tmp_path / "run"), "use_cpu": True, "bf16": False,
        "save_strategy": "no", "logging_steps": 1,
    }  # fmt: skip
    overrides = {("model." + key if key in builders else key): value for key, value in overrides.items()}
    folder, metrics = run_sft(load_recipe(name, overrides))
    assert metrics["steps"] == 2
    assert metrics["parameters"]["tag_encoder"] > 0 < metrics["parameters"]["adapters"]
    assert torch.isfinite(torch.tensor(metrics["train_loss"]))
    model, processor = load_trained(folder)
    config = json.loads((Path(folder) / "config.json").read_text())
    assert config["backbones"] == backbones
    prompt = "<image>\nwhat color is the thing ?"
    inputs = processor(images=records[0]["image"], text=prompt, tags=[records[0]["tags"]], return_tensors="pt")
    inputs = inputs.to(dtype=model.dtype)
    tokens = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert tokens.shape[0] == 1
