"""`accelerate launch -m poise preference`: two CPU processes have the losses of one at the same global batch."""

import json
import os
import subprocess
import sys
from importlib.resources import files

import pytest
import yaml

CPU_DDP = yaml.safe_load((files("poise.training") / "accelerate" / "cpu_ddp.yaml").read_text())


@pytest.mark.slow
def test_two_processes_learn_as_one(small_preference_recipe, tmp_path):
    from poise.training.preference.stage import run_preference

    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    config, recipe = tmp_path / "accelerate.yaml", tmp_path / "recipe.yaml"
    config.write_text(yaml.safe_dump({**CPU_DDP, "main_process_port": 29541}))
    small_preference_recipe(tmp_path / "two", **settings).save(recipe)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), "-m", "poise",
               "preference", "--config", str(recipe)]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    run_preference(small_preference_recipe(tmp_path / "one", per_device_train_batch_size=8, **settings))
    losses = [
        [entry["loss"] for entry in json.loads(path.read_text())["log_history"] if "loss" in entry]
        for path in (tmp_path / run / "checkpoint-2" / "trainer_state.json" for run in ("one", "two"))
    ]
    assert len(losses[0]) == 2
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
