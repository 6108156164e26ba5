"""After the first backward pass: every module that should learn must have got a gradient."""

import logging
from collections.abc import Sequence

import torch
from transformers import TrainerCallback

from poise.training.parameter_groups import NEW_MODULES, group_of

logger = logging.getLogger(__name__)


class GradientCheck(TrainerCallback):
    """
    Args:
        allowed (`Sequence[str]`, *optional*): modules that may stay without a gradient.

    Raises:
        ValueError: in the first step, a module that learns got none and is not allowed to.
    """

    def __init__(self, allowed: Sequence[str] = ()):
        self.allowed = tuple(allowed)

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step > 0 or model is None:
            return
        without, silent = modules_without_gradient(model)
        accepted = [name for name in without if name in self.allowed]
        refused = [name for name in without if name not in self.allowed]
        if refused:
            raise ValueError(
                f"{', '.join(refused)} should learn but got no gradient in the first step: the loss does not depend on "
                "it. Check that the records bring the inputs it reads (images, tags), drop its learning rate, or name "
                "it in checks.allow_without_gradient."
            )
        if not state.is_world_process_zero:
            return
        if accepted:
            logger.info("no gradient in the first step, as allowed: %s", ", ".join(accepted))
        if silent:
            logger.warning(
                "%s got a gradient of exactly zero in the first step; if that lasts, nothing is learned there.",
                ", ".join(silent),
            )
        if not without and not silent:
            logger.info("first step: every module that learns got a gradient")


def modules_without_gradient(model: torch.nn.Module) -> tuple[list[str], list[str]]:
    """Trainable modules none of whose parameters has a gradient, and those whose gradients are all exactly zero."""
    gradients: dict[str, list[float | None]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parts = name.split(".")
            new_module = next((module for module in (*NEW_MODULES, "task_adapters") if module in parts), None)
            key = new_module if group_of(name) == "new_modules" and new_module else str(group_of(name))
            key = "adapters" if key == "task_adapters" else key  # their mixing weights belong to them
            gradient = parameter.grad
            gradients.setdefault(key, []).append(None if gradient is None else float(gradient.abs().max()))
    without = [name for name, values in gradients.items() if all(value is None for value in values)]
    silent = [name for name, values in gradients.items() if name not in without and not any(values)]
    return without, silent
