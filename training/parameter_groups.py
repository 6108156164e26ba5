"""Which parameters learn, and how fast: named groups with their own learning rates.

New modules start from nothing and want a rate far above the adapters', and those one above a pretrained tag encoder's
(Dynamic LION gives its projection a multiple of the base rate for the same reason).
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

NEW_MODULES = ("projector", "soft_prompt", "router")


def group_of(name: str, groups: Iterable[str] = ()) -> str | None:
    """
    Group of a parameter by its full name, or `None` for what is never trained (the language model's own weights).

    The soft prompt is a new module; where `groups` names "soft_prompt", it is a group of its own. One that starts with
    the language model's words wants a lower rate than a projector that starts from nothing.
    """
    if "lora_" in name:
        return "adapters"
    parts = name.split(".")
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


def optimizer_groups(
    model: nn.Module, learning_rates: Mapping[str, float], weight_decay: float
) -> list[dict[str, Any]]:
    """
    Parameter groups for a torch optimizer, one per name and decay; vectors (biases, norms, null tokens) do not decay.

    Raises:
        ValueError: a rate is given for a group of which the model has no trainable parameter.
    """
    found: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            group = group_of(name, learning_rates) or "new_modules"
            found.setdefault((group, parameter.dim() > 1), []).append(parameter)
    present = {group for group, _ in found}
    for group in learning_rates:
        if group not in present:
            raise ValueError(
                f"learning_rates.{group} is given, but the model has no trainable parameter there: drop the rate"
            )
    return [
        {
            "params": parameters,
            "lr": float(learning_rates[group]),
            "weight_decay": weight_decay if decays else 0.0,
            "group": group,
        }
        for (group, decays), parameters in found.items()
    ]


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Trainable parameters by group, and `total` of the whole model (a 4-bit weight counts as what it stores)."""
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            group = group_of(name) or "other"
            counts[group] = counts.get(group, 0) + parameter.numel()
    counts["total"] = sum(p.numel() for n, p in model.named_parameters() if ".original_module." not in n)
    return counts
