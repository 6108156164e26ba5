"""Checkpoints carry everything, resume exactly, and refuse what does not fit."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from poise.training.atomic_folders import seal
from poise.training.run_files import last_checkpoint
from poise.training.sft.checkpoints import check_resumable, load_trained
from poise.training.sft.stage import training_arguments

pytestmark = pytest.mark.numerics


def test_a_checkpoint_carries_adapter_new_modules_processor_recipe_and_versions(finished_run):
    folder, _, _ = finished_run
    checkpoint = last_checkpoint(folder)
    assert checkpoint.name == "checkpoint-4"
    weights = load_file(checkpoint / "adapter_model.safetensors")
    for part in ("lora_A", "projector", "soft_prompt", "router"):
        assert any(part in name for name in weights), part
    assert any("image_typicality.scatter" in name for name in weights)
    for name in ("processor_config.json", "config.json", "recipe.yaml", "versions.json", "optimizer.pt"):
        assert (checkpoint / name).is_file(), name


def test_checkpoint_and_finished_model_answer_alike(finished_run):
    folder, model_folder, _ = finished_run
    from_checkpoint, processor = load_trained(last_checkpoint(folder))
    finished, _ = load_trained(model_folder)
    from poise.processing import GenerationCollator, Scenes

    inputs, _ = GenerationCollator(processor)(Scenes("test", size=2, tasks=("vqa",)).__getitems__([0, 1]))
    with torch.no_grad():
        torch.testing.assert_close(from_checkpoint(**inputs).logits, finished(**inputs).logits, rtol=1e-4, atol=1e-4)


def test_metrics_tell_answers_steps_and_parameters(finished_run):
    _, _, metrics = finished_run
    assert metrics["steps"] == 4
    assert 0.0 <= metrics["eval_vqa_accuracy"] <= 1.0
    assert metrics["parameters"]["adapters"] > 0


def test_resume_refuses_what_is_no_checkpoint(finished_run, small_recipe, tmp_path):
    folder, _, _ = finished_run
    recipe = small_recipe(tmp_path / "other")
    with pytest.raises(ValueError, match="is no folder"):
        check_resumable(tmp_path / "nowhere", recipe)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no complete checkpoint"):
        check_resumable(tmp_path / "empty", recipe)
    without = tmp_path / "checkpoint-2"
    shutil.copytree(folder / "checkpoint-2", without)
    (without / "optimizer.pt").unlink()
    with pytest.raises(ValueError, match=r"damaged, optimizer\.pt is missing"):
        check_resumable(without, recipe)


def test_resume_refuses_another_architecture(finished_run, small_recipe, tmp_path):
    folder, _, _ = finished_run
    with pytest.raises(ValueError, match="router_type='reliability'.*'gate'"):
        check_resumable(folder / "checkpoint-2", small_recipe(tmp_path, router_type="gate"))
    with pytest.raises(ValueError, match=r"lora\.r=16, the recipe says 4"):
        check_resumable(folder / "checkpoint-2", small_recipe(tmp_path, **{"lora.r": 4}))
    with pytest.raises(ValueError, match=r"learning_rates=\['adapters', 'new_modules'.*'tag_encoder'"):
        check_resumable(folder / "checkpoint-2", small_recipe(tmp_path, **{"learning_rates.tag_encoder": 1e-4}))
    # Another backbone of the same shape: the weights would load, and mean something else.
    renamed = tmp_path / "checkpoint-8"
    shutil.copytree(folder / "checkpoint-2", renamed)
    config = (renamed / "config.json").read_text()
    text = json.loads(config)["backbones"]["text"]
    (renamed / "config.json").write_text(config.replace(json.dumps(text), json.dumps(text[:-1] + "x")))
    seal(renamed)
    with pytest.raises(ValueError, match=r"backbones\.text="):
        check_resumable(renamed, small_recipe(tmp_path))
    foreign = tmp_path / "checkpoint-9"
    shutil.copytree(folder / "checkpoint-2", foreign)
    (foreign / "config.json").write_text(json.dumps({"model_type": "llava"}))
    seal(foreign)  # or it would be a damaged one
    with pytest.raises(ValueError, match="'llava'"):
        check_resumable(foreign, small_recipe(tmp_path))


def test_an_output_folder_that_is_a_file_is_refused_before_anything_is_read(small_recipe, tmp_path):
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(ValueError, match="is a file"):
        training_arguments(small_recipe(path))


def test_loading_a_folder_that_holds_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json"):
        load_trained(tmp_path)
