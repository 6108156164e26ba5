"""A learning-rate schedule for each parameter group."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import TrainingArguments, get_scheduler

from poise.training.parameter_groups import group_settings


def own_schedules(learning_rates: Mapping[str, Any]) -> bool:
    """Whether a group names a schedule or a warm-up of its own."""
    return any(s.schedule is not None or s.warmup is not None for s in group_settings(learning_rates).values())


def warmup_steps(warmup: float, num_training_steps: int) -> int:
    """Steps; below 1 it is a share of the run, rounded up, as `TrainingArguments.warmup_steps` is."""
    return int(warmup) if warmup >= 1 else -int(-warmup * num_training_steps // 1)


def scheduler_by_group(
    optimizer: torch.optim.Optimizer,
    learning_rates: Mapping[str, Any],
    args: TrainingArguments,
    num_training_steps: int,
) -> LRScheduler:
    """
    One scheduler in which every parameter group follows its own factor of the step.

    Args:
        optimizer: whose parameter groups carry their name as `group` (see `optimizer_groups`).
        learning_rates: settings by group; what a group leaves out is the run's own.
        args (`TrainingArguments`): `lr_scheduler_type`, `warmup_steps`, `lr_scheduler_kwargs` of the run.
        num_training_steps (`int`): length of the run in optimizer steps.
    """
    settings = group_settings(learning_rates)
    factors = []
    for group in optimizer.param_groups:
        own = settings[group["group"]]
        name = own.schedule or args.lr_scheduler_type
        warmup = args.get_warmup_steps(num_training_steps)
        if own.warmup is not None:
            warmup = warmup_steps(own.warmup, num_training_steps)
        # transformers ties a schedule to a whole optimizer; of that, only the function of the step is wanted.
        alone = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        extra = args.lr_scheduler_kwargs if own.schedule is None else None
        schedule = get_scheduler(name, alone, warmup, num_training_steps, scheduler_specific_kwargs=extra)
        if not isinstance(schedule, LambdaLR):
            raise ValueError(
                f"training.lr_scheduler_type={str(name)!r} does not depend on the step alone, so groups cannot have "
                "schedules beside it: name a schedule for every group, or none"
            )
        factors.append(schedule.lr_lambdas[0])
    return LambdaLR(optimizer, factors)
