"""The table at the start of a run: module → dtype → trainable → learning rate → parameters.

It is read off the model as it stands, so what was quantized by accident, or learns by accident, is seen at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from poise.training.parameter_groups import group_of, group_settings

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
