"""`accelerate launch` with two CPU processes: the losses and the statistics of one process at the same global batch."""

import json
import os
import subprocess
import sys
from importlib.resources import files

import pytest
import torch
import yaml
from safetensors.torch import load_file

from poise.processing import write_task_records
from poise.processing.scenes.scenes import Scenes
from poise.training.sft.stage import run_sft

CPU_DDP = yaml.safe_load((files("poise.training") / "accelerate" / "cpu_ddp.yaml").read_text())


def launch(folder, processes, batch, recipe):
    """Losses of three steps, and the weights of the newest checkpoint."""
    config = folder / f"accelerate_{processes}.yaml"
    config.write_text(yaml.safe_dump({**CPU_DDP, "num_processes": processes, "main_process_port": 29511 + processes}))
    recipe.training.update(per_device_train_batch_size=batch, output_dir=str(folder / f"run_{processes}"))
    recipe.save(folder / f"recipe_{processes}.yaml")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), "-m", "poise", "sft",
               "--config", str(folder / f"recipe_{processes}.yaml")]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr[-3000:]
    return *newest(folder / f"run_{processes}"), result.stderr + result.stdout


def newest(run):
    """Losses of three steps, and the weights after them."""
    state = json.loads((run / "checkpoint-3" / "trainer_state.json").read_text())
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    return losses, load_file(run / "checkpoint-3" / "adapter_model.safetensors")


@pytest.mark.slow
def test_two_processes_train_as_one(small_recipe, tmp_path):
    # Each process draws its own stream drops; without them the two runs are the same computation.
    overrides = {"stream_dropout": 0.0, "max_steps": 3, "save_strategy": "steps", "save_steps": 3}
    one, weights_one, _ = launch(tmp_path, 1, 8, small_recipe(tmp_path, **overrides))
    two, weights_two, log = launch(tmp_path, 2, 4, small_recipe(tmp_path, **overrides))
    assert len(one) == 3
    assert one == pytest.approx(two, rel=1e-5)
    seen = [name for name in weights_one if name.endswith("image_typicality.count")]
    held = [name for name in weights_one if name.endswith("image_typicality.calibration_count")]
    for weights in (weights_one, weights_two):
        # Every process saw every image of the global batch: 3 steps of 8.
        assert sum(int(weights[name]) for name in (*seen, *held)) == 24
    assert log.count("first batch:") == 1


@pytest.mark.slow
def test_a_process_with_text_alone_holds_nobody_up(small_recipe, tmp_path):
    """Records with and without images, one a process and step, on task-routed adapters: no waiting, same losses."""
    records = Scenes("train", size=12, tasks=("vqa", "grounding")).__getitems__(range(12))
    for record in records:
        if record["task"] == "vqa":
            record.update(image=None, tags=[])
    assert 3 <= sum(record["image"] is None for record in records) <= 9
    write_task_records(records, tmp_path / "train.jsonl")
    overrides = {"stream_dropout": 0.0, "max_steps": 3, "save_strategy": "steps", "save_steps": 3,
                 "data.train": str(tmp_path / "train.jsonl"), "data.evaluation": None, "lora.task_routed": True,
                 "router_type": "gate"}  # fmt: skip
    run_sft(small_recipe(tmp_path / "alone", **overrides, per_device_train_batch_size=2))
    one, weights_one = newest(tmp_path / "alone")
    two, weights_two, _ = launch(tmp_path, 2, 1, small_recipe(tmp_path, **overrides))
    assert one == pytest.approx(two, rel=1e-4)
    for name, value in weights_one.items():
        torch.testing.assert_close(value, weights_two[name], rtol=1e-2, atol=1e-3, msg=name)
