"""Mistakes in what all stages share, `training` and the settings of scenes: one line each, before anything is read.

`TrainingArguments` takes a word for a number without a look, and a run then ends somewhere behind the loading.
"""

import dataclasses
import inspect
import os
import types
import typing
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from poise.processing.scenes import Scenes

_TAKEN: dict[type, tuple[type, ...]] = {
    bool: (bool,), int: (int,), float: (int, float), str: (str, os.PathLike),
}  # fmt: skip
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a name"}
_LEAST = {"per_device_train_batch_size": 1, "per_device_eval_batch_size": 1, "gradient_accumulation_steps": 1,
          "dataloader_num_workers": 0, "save_total_limit": 1}  # fmt: skip


def made_arguments(arguments_class: type, settings: Mapping[str, Any], **more: Any) -> Any:
    """
    `TrainingArguments` (or a class made of them) of a recipe's section `training`; `more` are fields of that class.

    Raises:
        ValueError: a value of the wrong kind, an unknown choice, a folder that cannot be written, or half precision
            where the machine has none.
    """
    check_training(settings)
    try:
        args = arguments_class(**settings, **more)
    except (TypeError, ValueError) as error:
        raise ValueError(f"training: {' '.join(str(error).split())}") from error
    if args.fp16 and args.device.type == "cpu":
        raise ValueError("training.fp16=true needs a GPU: on a CPU write bf16: true, or neither")
    return args


def check_training(settings: Mapping[str, Any]) -> None:
    """Raises a `ValueError` for the first value that no run could use; what is left out is fine."""
    fields = {field.name: field for field in dataclasses.fields(TrainingArguments)}
    for name, value in settings.items():
        if name not in fields:
            continue
        check_kind(f"training.{name}", value, fields[name].type)
        choices = fields[name].metadata.get("choices")
        if choices and value not in choices:
            raise _unknown(f"training.{name}", value, choices)
        if name in _LEAST and value is not None and value < _LEAST[name]:
            raise ValueError(f"training.{name}={value!r} must be at least {_LEAST[name]}")
    _check_trackers(settings.get("report_to"))
    if settings.get("output_dir") is not None:
        _check_folder(str(settings["output_dir"]))


def check_kind(key: str, value: Any, annotation: Any) -> None:
    """Raises a `ValueError` where `annotation` asks for one plain kind of value, and `value` is of another."""
    is_union = typing.get_origin(annotation) in (types.UnionType, typing.Union)
    kinds = set(typing.get_args(annotation)) if is_union else {annotation}
    if value is None and type(None) in kinds:
        return
    (kind, *others) = kinds - {type(None)} or {None}
    if others or kind not in _TAKEN:
        return
    if not isinstance(value, _TAKEN[kind]) or (isinstance(value, bool) and kind is not bool):
        hint = " (YAML reads 1e-3 without a dot as text: write 1.0e-3)" if kind is float else ""
        raise ValueError(f"{key}={value!r} must be {_WORDS[kind]}{hint}")


def check_scenes(settings: Any, key: str = "data.scenes", split: bool = False) -> None:
    """
    Raises a `ValueError` unless `settings` are arguments of [`Scenes`] by name, and numbers where it wants them; the
    split is among them only where `split` says so.
    """
    if not isinstance(settings, Mapping):
        raise ValueError(f"{key}={settings!r} must be settings of scenes, such as {{size: 2000}}")
    known = {name: p for name, p in inspect.signature(Scenes).parameters.items() if split or name != "split"}
    for name, value in settings.items():
        if name not in known:
            raise _unknown(key, name, list(known))
        check_kind(f"{key}.{name}", value, known[name].annotation)


def _check_trackers(wanted: Any) -> None:
    names = [wanted] if isinstance(wanted, str) else list(wanted or [])
    known = [*INTEGRATION_TO_CALLBACK, "none", "all"]
    for name in names:
        if name not in known:
            raise _unknown("training.report_to", name, known)
        if name not in ("none", "all") and name not in get_available_reporting_integrations():
            raise ImportError(f"training.report_to={name!r} needs {name}: pip install {name}, or set report_to=none")


def _check_folder(folder: str) -> None:
    path = Path(folder).absolute()
    if path.exists() and not path.is_dir():
        raise ValueError(f"training.output_dir={folder!r} is a file: name a folder")
    nearest = next(parent for parent in (path, *path.parents) if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        what = "may not be written" if nearest.is_dir() else "is a file"
        raise ValueError(f"training.output_dir={folder!r} cannot be made, {nearest} {what}: name another folder")


def _unknown(key: str, value: Any, known: Sequence[str]) -> ValueError:
    near = get_close_matches(str(value), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(sorted(known))}"
    return ValueError(f"{key}: {value!r} is not known: {hint}")
