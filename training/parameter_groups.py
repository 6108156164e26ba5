"""Which parameters learn, and how fast: named groups, each with its own learning rate, decay and schedule.

New modules start from nothing and want a rate far above the adapters', and those one above a pretrained tag encoder's
(Dynamic LION gives its projection a multiple of the base rate for the same reason).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import TrainingArguments, get_scheduler

NEW_MODULES = ("projector", "soft_prompt", "router")
PARAMETER_GROUPS = ("new_modules", "soft_prompt", "adapters", "tag_encoder", "vision_tower")
# Those of transformers whose factor depends on the step alone, so that groups can follow different ones.
SCHEDULES = (
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt",
)  # fmt: skip
MIXING = "task_mixing"  # the weights between task-routed adapters: numbers near 1, not matrices near 0


@dataclass(frozen=True)
class GroupSettings:
    """
    How one group learns.

    Args:
        rate (`float`): peak learning rate.
        weight_decay (`float`, *optional*): of its matrices; the run's own (`training.weight_decay`) by default.
        schedule (`str`, *optional*): one of `SCHEDULES`; the run's own (`training.lr_scheduler_type`) by default.
        warmup (`float`, *optional*): steps (1 or more) or share of the run (below 1); the run's own by default.
    """

    rate: float
    weight_decay: float | None = None
    schedule: str | None = None
    warmup: float | None = None

    @classmethod
    def of(cls, group: str, value: Any) -> "GroupSettings":
        """
        A number is a rate; a mapping names the fields.

        Raises:
            ValueError: an unknown field or schedule, or a value that is no number in its range.
        """
        where = f"learning_rates.{group}"
        content = dict(value) if isinstance(value, Mapping) else {"rate": value}
        known = [field.name for field in fields(cls)]
        for name in content:
            if name not in known:
                near = get_close_matches(str(name), known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
                raise ValueError(f"{where}: {name!r} is not known: {hint}")
        if "rate" not in content:
            raise ValueError(f"{where}={value!r} has no rate: write {{rate: 1.0e-3, ...}}, or the number alone")
        if not _is_number(content["rate"]) or not content["rate"] > 0:
            raise ValueError(
                f"{where}={content['rate']!r} must be a number above 0 (YAML reads 1e-3 without a dot as text: "
                "write 1.0e-3); leave the group out to keep it frozen"
            )
        for name in ("weight_decay", "warmup"):
            given = content.get(name)
            if given is not None and (not _is_number(given) or given < 0):
                raise ValueError(f"{where}.{name}={given!r} must be a number of 0 or more")
        schedule = content.get("schedule")
        if schedule is not None and schedule not in SCHEDULES:
            raise ValueError(f"{where}.schedule={schedule!r} is not known: choose one of {', '.join(SCHEDULES)}")
        return cls(**content)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def group_settings(learning_rates: Mapping[str, Any]) -> dict[str, GroupSettings]:
    """`{"new_modules": 1e-3, "adapters": {"rate": 2e-4, "schedule": "constant"}}` as settings by group.

    Raises:
        ValueError: see [`GroupSettings.of`].
    """
    return {
        group: value if isinstance(value, GroupSettings) else GroupSettings.of(group, value)
        for group, value in learning_rates.items()
    }


def group_of(name: str, groups: Iterable[str] = ()) -> str | None:
    """
    Group of a parameter by its full name, or `None` for what is never trained (the language model's own weights).

    The soft prompt is a new module; where `groups` names "soft_prompt", it is a group of its own. One that starts with
    the language model's words wants a lower rate than a projector that starts from nothing.
    """
    parts = name.split(".")
    if MIXING in parts:
        return "new_modules"
    if "lora_" in name or "task_adapters" in parts:
        return "adapters"
    if "language_model" in parts:
        return None
    for group in ("tag_encoder", "vision_tower"):
        if group in parts:
            return group
    if "soft_prompt" in parts and "soft_prompt" in groups:
        return "soft_prompt"
    return "new_modules" if any(module in parts for module in NEW_MODULES) else None


def set_trainable(model: nn.Module, groups: Iterable[str]) -> None:
    """Let exactly the parameters of `groups` learn. Copies that PEFT keeps of an original module stay frozen."""
    groups = set(groups)
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            parameter.requires_grad = group_of(name, groups) in groups and ".original_module." not in name


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Matrices decay; vectors (biases, norms, null tokens) and mixing weights do not."""
    return parameter.dim() > 1 and MIXING not in name.split(".")


def highest_rate(learning_rates: Mapping[str, Any]) -> float:
    """What loggers show of a run with several rates."""
    return max(settings.rate for settings in group_settings(learning_rates).values())


def optimizer_groups(
    model: nn.Module,
    learning_rates: Mapping[str, Any],
    weight_decay: float,
    group_of: Callable[[str, Iterable[str]], str | None] = group_of,
) -> list[dict[str, Any]]:
    """
    Parameter groups for a torch optimizer, one per name and decay.

    Args:
        model: with `requires_grad` set.
        learning_rates (`Mapping`): a rate, a mapping or [`GroupSettings`] by group.
        weight_decay (`float`): of groups that name none.
        group_of (`Callable`, *optional*): `(name, groups)`, where the model is no Poise model.

    Raises:
        ValueError: a rate is given for a group of which the model has no trainable parameter.
    """
    settings = group_settings(learning_rates)
    found: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            group = group_of(name, settings) or "new_modules"
            found.setdefault((group, decays(name, parameter)), []).append(parameter)
    present = {group for group, _ in found}
    for group in settings:
        if group not in present:
            raise ValueError(
                f"learning_rates.{group} is given, but the model has no trainable parameter there: drop the rate"
            )
    return [
        {
            "params": parameters,
            "lr": float(settings[group].rate),
            "weight_decay": _decay_of(settings[group], weight_decay) if does_decay else 0.0,
            "group": group,
        }
        for (group, does_decay), parameters in found.items()
    ]


def _decay_of(settings: GroupSettings, default: float) -> float:
    return default if settings.weight_decay is None else float(settings.weight_decay)


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Trainable parameters by group, and `total` of the whole model (a 4-bit weight counts as what it stores)."""
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            group = group_of(name) or "other"
            counts[group] = counts.get(group, 0) + parameter.numel()
    counts["total"] = sum(p.numel() for n, p in model.named_parameters() if ".original_module." not in n)
    return counts


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
