"""What decides the course of a run, noted in every checkpoint, and one line where a resumed run has it otherwise."""

import dataclasses
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import xxhash

logger = logging.getLogger(__name__)

SETTINGS_FILE = "run_settings.json"
_ARGUMENTS = (
    "seed", "data_seed", "per_device_train_batch_size", "gradient_accumulation_steps", "train_sampling_strategy",
    "max_steps", "num_train_epochs", "lr_scheduler_type", "warmup_steps", "optim", "bf16", "fp16", "max_grad_norm",
    "weight_decay", "learning_rate",
)  # fmt: skip
# What it means that a setting differs, by the beginning of its name.
_MEANINGS = {
    "other samples follow, so that some come twice and others never": (
        "data", "seed", "per_device_train_batch_size", "gradient_accumulation_steps", "processes",
        "train_sampling_strategy",
    ),
    "in force from the next step": ("learning_rate", "weight_decay", "max_grad_norm"),
    "the learning rate follows another curve": ("max_steps", "num_train_epochs", "lr_scheduler_type", "warmup_steps"),
    "the result is another one": ("optim", "bf16", "fp16"),
}  # fmt: skip
_NOT_TRAINED_ON = ("evaluation", "max_new_tokens", "feature")
CHUNK = 1000  # records


def run_settings(trainer: Any) -> dict[str, Any]:
    """Settings by dotted name, as JSON knows them; `data.records` and `data.contents` tell what the recipe cannot."""
    args, recipe = trainer.args, getattr(trainer, "recipe", None)
    data = getattr(trainer, "training_data", trainer.train_dataset)
    named = {name: value for name in _ARGUMENTS if (value := getattr(args, name, None)) is not None}
    rates = getattr(trainer, "learning_rates", None) or getattr(recipe, "learning_rates", None)
    if rates:
        named.pop("learning_rate", None)  # only the loggers' headline
    settings = {
        **named,
        "processes": args.world_size,
        "learning_rates": rates,
        "data": {
            **_plain(getattr(recipe, "data", None) or {}),
            "records": len(data) if hasattr(data, "__len__") else None,
            "contents": contents_of(data),
        },
    }
    return json.loads(json.dumps(_flat(settings), default=str))


def _plain(section: Any) -> dict[str, Any]:
    fields = section if isinstance(section, Mapping) else vars(section)
    # What is only evaluated on, and where features are kept, changes no step; a password in an address is kept out.
    trained = {name: value for name, value in fields.items() if not name.startswith(_NOT_TRAINED_ON)}
    text = json.dumps(trained, default=str)
    return json.loads(re.sub(r"//[^/@\s\"]+@", "//", text))


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value:
        return {name: value}
    return {
        inner: leaf for key, part in value.items() for inner, leaf in _flat(part, f"{name}.{key}".lstrip(".")).items()
    }


def contents_of(data: Any) -> str | None:
    """
    A hash of what a data set is made of: its records where it holds them, its settings where it draws them, the keys of
    its feature caches; `None` for what cannot be told. Of images only the names count.
    """
    try:
        return _digest(data)
    except (TypeError, ValueError, RecursionError):
        return None


def _digest(value: Any) -> str:
    digest = xxhash.xxh3_64()
    # A million records as one text would take a gigabyte.
    parts = (
        (value[start : start + CHUNK] for start in range(0, len(value), CHUNK)) if isinstance(value, list) else [value]
    )
    for part in parts:
        digest.update(json.dumps(part, default=_made_of, sort_keys=True, skipkeys=True).encode())
    return digest.hexdigest()


def _made_of(value: Any) -> Any:
    if isinstance(value, set | frozenset | range):
        return sorted(value)
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(getattr(value, "identity", None), str):  # a feature cache's key
        return value.identity
    kind, fields = type(value), getattr(value, "__dict__", None)
    if fields is None or not (dataclasses.is_dataclass(value) or isinstance(value, torch.utils.data.Dataset)):
        return [kind.__name__, len(value) if hasattr(value, "__len__") else None]
    content = {name: field for name, field in fields.items() if not isinstance(field, os.PathLike)}
    return [kind.__name__, {name: _digest(field) for name, field in content.items()}]


def tell_of_other_settings(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """One logged line if the checkpoint was written with other settings, and what that means; returned as well."""
    try:
        before = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    changed = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
    found = []
    for meaning, beginnings in _MEANINGS.items():
        names = [name for name in changed if _belongs(name, beginnings)]
        if names:
            found.append(f"{', '.join(_change(name, before, settings) for name in names)} ({meaning})")
    if not found:
        return None
    line = f"{folder} was written with other settings: {'; '.join(found)}"
    logger.warning(line)
    return line


def _belongs(name: str, beginnings: Sequence[str]) -> bool:
    first = name.partition(".")[0]
    return first in beginnings or f"{first}s" in beginnings or first.removesuffix("s") in beginnings


def _change(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if name == "data.contents":
        return "other records or another order of them"
    return f"{name} {before.get(name)} → {now.get(name)}"
