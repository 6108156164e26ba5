"""What is checked and told when a run starts: every module that should learn gets a gradient, the processes run as the
launcher was asked to run them, and a table says what each module is and how it learns.

Launchers fail in silence. `distributed_type: MULTI_CPU` without mpirun starts one process, however many were asked for;
FSDP on a CPU becomes DDP. Both train on, at another batch size or in another memory than the recipe was written for.
What was asked for stands in the environment that `accelerate launch` and `torchrun` leave behind. The table is read off
the model as it stands, so what was quantized, or learns, by mistake is seen at once.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback

from .parameter_groups import NEW_MODULES, group_of, group_settings

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


# Names under which a process is told its rank: by torchrun, and by the MPI implementations.
RANK_NAMES = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "MPI_LOCALRANKID", "SLURM_PROCID")
# What accelerate leaves where it starts a single process by itself, and where it expects that one to meet others.
STARTED_ALONE, MEETING_POINT = "ACCELERATE_USE_CPU", ("MASTER_ADDR", "MASTER_PORT")


def wrapper_of(model: torch.nn.Module) -> str:
    """`none`, `ddp`, `fsdp1`, `fsdp2` or `zero0` … `zero3`: what a model is wrapped into."""
    if type(model).__name__ == "DeepSpeedEngine":
        return f"zero{model.zero_optimization_stage()}"
    modules = list(model.modules())
    if any(isinstance(module, FSDPModule) for module in modules):
        return "fsdp2"
    if any(isinstance(module, FullyShardedDataParallel) for module in modules):
        return "fsdp1"
    return "ddp" if any(isinstance(module, DistributedDataParallel) for module in modules) else "none"


def asked_for(environment: Mapping[str, str], deepspeed_stage: int | None = None) -> tuple[int | None, str | None]:
    """
    World size and wrapper that the launcher was asked for; `None` where it did not say.

    Raises:
        ValueError: it was asked for several processes, and started one.
    """
    told = environment.get("WORLD_SIZE")
    if told is None and all(name in environment for name in (STARTED_ALONE, *MEETING_POINT)):
        # It names a meeting point only for several processes; whoever has no rank there is alone.
        if not any(name in environment for name in RANK_NAMES):
            raise ValueError(
                "distributed_type=MULTI_CPU asked for several processes, but without mpirun accelerate starts only "
                "one: use distributed_type: MULTI_GPU with use_cpu: true, as in training/accelerate/cpu_ddp.yaml"
            )
    world = None if told is None else int(told)
    if _is_on(environment, "ACCELERATE_USE_DEEPSPEED"):
        return world, "zero" if deepspeed_stage is None else f"zero{deepspeed_stage}"
    if _is_on(environment, "ACCELERATE_USE_FSDP"):
        return world, f"fsdp{environment.get('FSDP_VERSION', '1')}"
    # A single process may be wrapped or not, it makes no difference.
    return world, "ddp" if world is not None and world > 1 else None


def _is_on(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "").lower() in ("true", "1", "yes")


def check_launch(model: torch.nn.Module, args: Any, environment: Mapping[str, str] = os.environ) -> None:
    """
    Args:
        model: as the training step gets it, wrapped.
        args (`TrainingArguments`): knows the world size and device.

    Raises:
        ValueError: fewer processes, another wrapper or another device than the launcher was asked for.
    """
    plugin = getattr(args, "deepspeed_plugin", None)
    world, wrapper = asked_for(environment, getattr(plugin, "zero_stage", None))
    if world is not None and world != args.world_size:
        raise ValueError(
            f"num_processes={world} were asked for, but training sees {args.world_size}: start it through "
            "`accelerate launch --config_file …` or torchrun, and set no world size by hand"
        )
    found = wrapper_of(model)
    if wrapper is None or found.startswith(wrapper):
        return
    if wrapper.startswith("fsdp") and args.device.type == "cpu":
        raise ValueError(
            f"{wrapper} was asked for, but on a CPU accelerate quietly makes it {found}: use "
            "training/accelerate/cpu_ddp.yaml here, fsdp2.yaml on GPUs"
        )
    raise ValueError(
        f"{wrapper} was asked for, but the model is wrapped as {found}: compare the file given to `accelerate launch "
        "--config_file` with those in training/accelerate"
    )


PARTS = ("vision_tower", "projector", "tag_encoder", "soft_prompt", "router", "task_adapters", "language_model")
_WRAPPERS = {"default", "modules_to_save", "base_layer"}  # what PEFT puts into names


@dataclass
class ModuleRow:
    """One line: parameters of one part that share their number format and learn alike."""

    part: str
    dtype: str
    group: str | None
    rate: str
    layers: list[str] = field(default_factory=list)
    parameters: int = 0


def dtype_of(parameter: nn.Parameter) -> str:
    """`"nf4 (double quantized)"`, `"int8"`, or torch's name without its prefix."""
    state = getattr(parameter, "quant_state", None)
    if state is not None:
        return f"{state.quant_type}{' (double quantized)' if state.nested else ''}"
    if type(parameter).__name__ == "Int8Params":
        return "int8"
    return str(parameter.dtype).removeprefix("torch.")


def size_of(parameter: nn.Parameter) -> int:
    """How many numbers it stands for: two 4-bit ones share a byte."""
    state = getattr(parameter, "quant_state", None)
    return int(state.shape.numel()) if state is not None else parameter.numel()


def module_rows(model: nn.Module, learning_rates: Mapping[str, Any]) -> list[ModuleRow]:
    """
    Rows in the order of the forward pass, frozen before trained.

    Args:
        model: as it is going to be trained, with or without PEFT.
        learning_rates: rates or settings by group.
    """
    settings = group_settings(learning_rates)
    rows: dict[tuple, ModuleRow] = {}
    for name, parameter in model.named_parameters():
        if ".original_module." in name:
            continue
        names = [word for word in name.split(".") if word not in _WRAPPERS]
        part = next((word for word in names if word in PARTS), "other")
        group = (group_of(name, settings) or "other") if parameter.requires_grad else None
        rate = "-"
        if group is not None and group in settings:
            own = settings[group]
            rate = f"{own.rate:g}" + (f" {own.schedule}" if own.schedule else "")
        key = (part, group is not None, dtype_of(parameter), group)
        row = rows.setdefault(key, ModuleRow(part, dtype_of(parameter), group, rate))
        row.parameters += size_of(parameter)
        layer = _layer_of(names)
        if layer not in row.layers:
            row.layers.append(layer)
    order = {part: place for place, part in enumerate((*PARTS, "other"))}
    return [rows[key] for key in sorted(rows, key=lambda key: (order[key[0]], key[1], key[2], str(key[3])))]


def _layer_of(names: list[str]) -> str:
    """What a reader calls a parameter's place; biases stand apart, for they are full beside quantized weights."""
    if names[-1] == "bias":
        return "biases"
    layer = names[-2] if len(names) > 1 and names[-1] == "weight" else names[-1]
    return names[-3] if layer.isdigit() and len(names) > 2 else layer


def module_table(model: nn.Module, learning_rates: Mapping[str, Any]) -> str:
    """The rows as text for a log."""
    rows = module_rows(model, learning_rates)
    cells = [("module", "dtype", "trainable", "learning rate", "parameters", "layers")]
    for row in rows:
        shown = " ".join(row.layers[:6]) + (f" and {len(row.layers) - 6} more" if len(row.layers) > 6 else "")
        cells.append((row.part, row.dtype, row.group or "no", row.rate, f"{row.parameters:,}", shown))
    trained = sum(row.parameters for row in rows if row.group is not None)
    total = sum(row.parameters for row in rows)
    widths = [max(len(line[column]) for line in cells) for column in range(5)]
    lines = []
    for line in cells:
        parts = [line[column].ljust(widths[column]) for column in range(4)]
        lines.append("  ".join([*parts, line[4].rjust(widths[4]), line[5]]).rstrip())
    lines.append(f"{trained:,} of {total:,} parameters learn ({100 * trained / max(1, total):.1f} %)")
    return "\n".join(lines)
