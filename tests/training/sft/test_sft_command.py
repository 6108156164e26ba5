"""`poise sft`: overrides, real photos, text-only batches, and mistakes that end before a model is loaded."""

import logging

import pytest

from poise.commands.train import SFT
from poise.processing import load_task_records, write_task_records
from poise.processing.scenes.scenes import Scenes
from poise.training.sft import assembly
from poise.training.sft.checkpoints import load_trained
from poise.training.sft.stage import run_sft


@pytest.fixture
def no_model(monkeypatch):
    """Fails the test as soon as a model would be loaded."""

    def refuse(*args, **kwargs):
        raise AssertionError("a model was loaded before the mistake was found")

    monkeypatch.setattr(assembly.PoiseForConditionalGeneration, "from_backbones", refuse)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "demmo"], "demo"),
        (["--config", "demo", "--router_typ", "gate"], "router_type"),
        (["--config", "demo", "--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--config", "demo", "--resume", "nowhere"], "is no folder"),
        (["--config", "demo", "--data.scenes", "{prior_strenght: 0.5}"], "prior_strenght"),
        (["--config", "demo", "--data.max_length", "40"], "36 image and 12 soft-prompt tokens"),
        (["--config", "demo", "--vision_feature_layer", "99"], "names hidden state 99"),
    ],
)
def test_a_mistake_is_one_line_before_any_model_is_loaded(no_model, words, message):
    with pytest.raises((ValueError, OSError, TypeError)) as caught:
        SFT.main(words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bad_record_names_file_line_and_field(no_model, tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text('{"id": "a", "task": "vqa", "image": null, "question": "why ?"}\n')
    with pytest.raises(ValueError, match=r"records\.jsonl.*1.*answers"):
        SFT.main(["--config", "demo", "--data", str(path)])


def test_records_without_images_train_beside_records_with(small_recipe, tmp_path, caplog):
    records = Scenes("train", size=6, tasks=("vqa",)).__getitems__(range(6))
    for record in records[::2]:
        record.update(image=None, tags=[])
    write_task_records(records, tmp_path / "train.jsonl")
    assert sum(record["image"] is None for record in load_task_records(tmp_path / "train.jsonl")) == 3
    recipe = small_recipe(
        tmp_path / "run", max_steps=2, per_device_train_batch_size=1,
        **{"data.train": str(tmp_path / "train.jsonl"), "data.evaluation": None},
    )  # fmt: skip
    with caplog.at_level(logging.INFO):
        _, metrics = run_sft(recipe)
    assert metrics["steps"] == 2
    assert any(line.startswith("first batch: 1 sample") for line in caplog.messages)


@pytest.mark.slow
def test_real_photos_train_and_answer(shared_folder, tmp_path):
    from poise.training.sft.recipe import load_recipe

    overrides = {
        "data.train": str(shared_folder / "data"), "output_dir": str(tmp_path), "max_steps": 4, "eval_steps": 4,
        "save_steps": 4, "data.evaluation_samples": 4, "per_device_train_batch_size": 4, "logging_steps": 1,
    }  # fmt: skip
    folder, metrics = run_sft(load_recipe("photos", overrides))
    assert {"eval_caption_cider_d", "eval_loss"} <= set(metrics) or "eval_vqa_accuracy" in metrics
    model, processor = load_trained(folder)
    assert processor.tag_words and model.config.router_type == "reliability"
