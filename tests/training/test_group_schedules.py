"""Every group has its own rate, decay and schedule, and a resumed run follows them exactly."""

import json
import shutil

import pytest
import torch
from transformers import TrainingArguments

from poise.training.parameter_groups import optimizer_groups, scheduler_by_group, warmup_steps
from poise.training.sft.stage import run_sft

pytestmark = pytest.mark.numerics

RATES = {
    "new_modules": {"rate": 1e-2, "schedule": "linear", "warmup": 2},
    "adapters": {"rate": 1e-3, "schedule": "constant", "weight_decay": 0.0},
}


def two_groups():
    return torch.nn.ModuleDict({"projector": torch.nn.Linear(2, 2), "lora_A": torch.nn.Linear(2, 2, bias=False)})


def test_groups_follow_their_own_schedule(tmp_path):
    optimizer = torch.optim.AdamW(optimizer_groups(two_groups(), RATES, weight_decay=0.1))
    decay = {(g["group"], g["params"][0].dim()): g["weight_decay"] for g in optimizer.param_groups}
    assert decay == {("new_modules", 2): 0.1, ("new_modules", 1): 0.0, ("adapters", 2): 0.0}
    scheduler = scheduler_by_group(optimizer, RATES, TrainingArguments(tmp_path, use_cpu=True), num_training_steps=6)
    seen = {"new_modules": [], "adapters": []}
    for _ in range(6):
        for group in ("new_modules", "adapters"):
            seen[group].append(next(g["lr"] for g in optimizer.param_groups if g["group"] == group))
        optimizer.step()
        scheduler.step()
    assert seen["new_modules"] == pytest.approx([0.0, 5e-3, 1e-2, 7.5e-3, 5e-3, 2.5e-3])
    assert seen["adapters"] == [1e-3] * 6


def test_a_group_without_a_schedule_follows_the_run(tmp_path):
    optimizer = torch.optim.AdamW(optimizer_groups(two_groups(), {**RATES, "new_modules": 1e-2}, weight_decay=0.0))
    args = TrainingArguments(tmp_path, use_cpu=True, lr_scheduler_type="cosine", warmup_steps=0.5)
    scheduler = scheduler_by_group(optimizer, {**RATES, "new_modules": 1e-2}, args, num_training_steps=4)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.0, 5e-3, 1e-2, 5e-3])


def test_a_schedule_that_needs_more_than_the_step_is_refused(tmp_path):
    optimizer = torch.optim.AdamW(optimizer_groups(two_groups(), {**RATES, "new_modules": 1e-2}, weight_decay=0.0))
    args = TrainingArguments(tmp_path, use_cpu=True, lr_scheduler_type="reduce_lr_on_plateau", eval_strategy="steps")
    with pytest.raises(ValueError, match="name a schedule for every group"):
        scheduler_by_group(optimizer, {**RATES, "new_modules": 1e-2}, args, num_training_steps=4)


def test_warm_up_is_a_number_of_steps_or_a_share_of_the_run():
    assert (warmup_steps(3, 100), warmup_steps(0.05, 100), warmup_steps(0.05, 10), warmup_steps(0, 10)) == (3, 5, 1, 0)


def test_a_resumed_run_goes_on_with_the_same_rates_and_losses(small_recipe, tmp_path):
    settings = {"learning_rates.new_modules": RATES["new_modules"], "learning_rates.adapters": RATES["adapters"],
                "save_strategy": "steps", "save_steps": 2}  # fmt: skip
    run_sft(small_recipe(tmp_path / "one", **settings))
    shutil.copytree(tmp_path / "one" / "checkpoint-2", tmp_path / "two" / "checkpoint-2")
    run_sft(small_recipe(tmp_path / "two", **settings), resume="")
    logs = [json.loads((tmp_path / run / "checkpoint-4" / "trainer_state.json").read_text()) for run in ("one", "two")]
    one, two = ([entry for entry in log["log_history"] if "loss" in entry] for log in logs)
    shown = ("loss", "grad_norm", "learning_rate/new_modules", "learning_rate/adapters")
    assert [[entry[name] for name in shown] for entry in one] == [[entry[name] for name in shown] for entry in two]
    assert [entry["learning_rate/adapters"] for entry in one] == [1e-3] * 4
    assert [entry["learning_rate/new_modules"] for entry in one] == pytest.approx([0.0, 5e-3, 1e-2, 5e-3])


def test_a_warmup_of_one_is_one_step_and_below_it_a_share_rounded_up():
    assert [warmup_steps(value, 100) for value in (0, 0.001, 0.5, 0.999, 1, 1.0, 3)] == [0, 1, 50, 100, 1, 1, 3]
