"""`accelerate launch` with two CPU processes: the losses and the statistics of one process at the same global batch."""

import json
import os
import subprocess
import sys
from importlib.resources import files

import pytest
import yaml
from safetensors.torch import load_file

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
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    checkpoint = folder / f"run_{processes}" / "checkpoint-3"
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    return losses, load_file(checkpoint / "adapter_model.safetensors"), result.stderr + result.stdout


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
        # Every process saw every picture of the global batch: 3 steps of 8.
        assert sum(int(weights[name]) for name in (*seen, *held)) == 24
    assert log.count("first batch:") == 1
