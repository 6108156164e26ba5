"""Evaluation while training: generated metrics choose the best checkpoint and end the run; curves reach trackers."""

import json

import pytest
import torch
from safetensors.torch import load_file

from poise.evaluation.generation_evaluator import GenerationEvaluator
from poise.evaluation.robustness.router_weights import RouterByCondition
from poise.processing import Scenes
from poise.training.run_files import last_checkpoint
from poise.training.sft.stage import CONDITIONS, router_curves, run_sft

EVALUATED = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}


def history(folder):
    state = json.loads((last_checkpoint(folder) / "trainer_state.json").read_text())
    return state, state["log_history"]


@pytest.mark.parametrize("use_dora", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_best_generated_answers_choose_the_model_and_end_the_run(use_dora, small_recipe, tmp_path, monkeypatch):
    scores = iter([0.2, 0.9, 0.5, 0.4, 0.9])  # the last one is asked for after the run
    monkeypatch.setattr(GenerationEvaluator, "__call__", lambda self, *args: {"vqa_accuracy": next(scores)})
    settings = {"early_stopping.patience": 2, "metric_for_best_model": "vqa_accuracy", "save_total_limit": 2,
                "lora.use_dora": use_dora, "router_type": "none"}  # fmt: skip
    model, metrics = run_sft(small_recipe(tmp_path, max_steps=10, **EVALUATED, **settings))
    assert metrics["steps"] == 4
    state, log = history(tmp_path)
    assert state["best_metric"] == 0.9 and state["best_model_checkpoint"].endswith("checkpoint-2")
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    assert [entry["eval_vqa_accuracy"] for entry in log if "eval_loss" in entry] == [0.2, 0.9, 0.5, 0.4]
    best = load_file(tmp_path / "checkpoint-2" / "adapter_model.safetensors")
    finished = load_file(model / "model.safetensors")
    name = "model.projector.linear_1.weight"
    assert torch.equal(best[f"base_model.model.{name}"], finished[name])


def test_every_epoch_draws_other_captions_and_a_resumed_one_the_same(small_recipe, tmp_path):
    from transformers import TrainerCallback

    from poise.training.sft.trainer import CaptionOfTheEpoch

    epochs = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, train_dataloader=None, **kwargs):
            epochs.append(train_dataloader.collate_fn.epoch)

    recipe = small_recipe(
        tmp_path, **{"data.scenes": {"size": 8, "tasks": ["caption"]}, "max_steps": 4, "model.stream_dropout": 0.0}
    )
    run_sft(recipe, callbacks=[Watch()])
    assert epochs == [0, 0, 1, 1]

    class State:
        epoch = 3.0

    collator = type("Collator", (), {"epoch": 0})()
    CaptionOfTheEpoch(collator).on_epoch_begin(None, State, None)
    assert collator.epoch == 3


def test_the_routers_weights_by_condition(finished_run):
    from poise.training.sft.checkpoints import load_trained

    model, processor = load_trained(finished_run[1])
    records = Scenes("test", size=6, tasks=("vqa",)).__getitems__(range(6))
    curves = router_curves(processor, [{**records[0], "id": "text", "image": None}, *records], samples=4)
    values = curves(model)
    measured = RouterByCondition(degradations=CONDITIONS, severity=4, progress=False)(model, processor, records[:4])
    assert values["router/blank/image"] == measured["blank_image_weight"]
    assert set(values) == {f"router/{c}/{s}" for c in ("clean", *CONDITIONS) for s in ("image", "text")}
    assert all(0.0 <= value <= 1.0 for value in values.values())
    _, log = history(finished_run[0])
    assert {f"eval_{name}" for name in values} <= {name for entry in log for name in entry}
    model.config.router_type = "none"
    assert curves(model) == {} and router_curves(processor, [{**records[0], "image": None}])(model) == {}


@pytest.mark.slow
def test_trackio_gets_the_curves_and_stays_local(small_recipe, tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path / "trackio", raising=False)
    from trackio.sqlite_storage import SQLiteStorage

    settings = {"report_to": "trackio", "training.project": "poise-curves", "training.run_name": tmp_path.name}
    run_sft(small_recipe(tmp_path / "run", max_steps=2, eval_strategy="steps", eval_steps=2, **settings))
    logged = SQLiteStorage.get_logs("poise-curves", tmp_path.name)
    names = {name for entry in logged for name in entry}
    assert {"train/loss", "train/learning_rate/new_modules", "train/learning_rate/adapters"} <= names
    assert {"eval/vqa_accuracy", "eval/router/clean/image", "eval/router/blank/image"} <= names


@pytest.mark.slow
def test_tensorboard_gets_them_too(small_recipe, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = small_recipe(tmp_path, max_steps=2, eval_strategy="steps", eval_steps=2, report_to="tensorboard")
    run_sft(recipe)
    names = set()
    for folder in {path.parent for path in tmp_path.rglob("events.out*")}:
        events = EventAccumulator(str(folder))
        events.Reload()
        names |= set(events.Tags()["scalars"])
    assert {"train/learning_rate/adapters", "eval/router/blank/image", "eval/vqa_accuracy"} <= names
