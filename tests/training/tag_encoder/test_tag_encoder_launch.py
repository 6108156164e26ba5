"""`accelerate launch -m poise tag-encoder`: two CPU processes share the images and leave one tag encoder."""

import json
import os
import subprocess
import sys
from importlib.resources import files

import pytest
import yaml
from transformers import AutoModel

CPU_DDP = yaml.safe_load((files("poise.training") / "accelerate" / "cpu_ddp.yaml").read_text())


@pytest.mark.slow
def test_two_processes_share_the_images(small_tag_recipe, tmp_path):
    config, recipe = tmp_path / "accelerate.yaml", tmp_path / "recipe.yaml"
    config.write_text(yaml.safe_dump({**CPU_DDP, "main_process_port": 29531}))
    small_tag_recipe(tmp_path / "run", num_train_epochs=1, per_device_train_batch_size=8).save(recipe)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), "-m", "poise",
               "tag-encoder", "--config", str(recipe)]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    folder = tmp_path / "run" / "tag_encoder"
    results = json.loads((folder / "tag_encoder_results.json").read_text())
    assert results["curve"][-1]["step"] == results["train"] // 16  # 8 images in each of two processes
    assert results["curve"][-1]["cosine_margin"] > results["curve"][0]["cosine_margin"]
    assert AutoModel.from_pretrained(folder).config.hidden_size == 64
