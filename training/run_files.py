"""What lies beside the weights of a checkpoint: recipe, versions, and what decided the course of its run; which
checkpoints are sound, and one logged line where a resumed run has it otherwise.
"""

import dataclasses
import json
import logging
import os
import platform
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import xxhash
from transformers import PreTrainedModel

from .atomic_folders import MANIFEST, damage_of, damages_of

logger = logging.getLogger(__name__)

VERSIONS_FILE = "versions.json"
RECIPE_FILE = "recipe.yaml"
PREFERENCE_RECIPE_FILE = "preference.yaml"  # of preference training; `recipe.yaml` stays that of the fine-tuning
SETTINGS_FILE = "run_settings.json"
_PACKAGES = ("poise", "torch", "transformers", "peft", "accelerate", "safetensors")
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
FINISHED = ("model", "tag_encoder")  # what stages write at their end


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that a checkpoint depends on."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


def write_versions(folder: Path) -> None:
    """`versions.json` in the folder."""
    (folder / VERSIONS_FILE).write_text(json.dumps(versions(), indent=2) + "\n", encoding="utf-8")


def warn_of_other_versions(folder: Path) -> str | None:
    """One logged line if the folder was written with other versions, or does not say with which; returned as well."""
    path = folder / VERSIONS_FILE
    if not path.is_file():
        return None
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        changes = [
            f"{name} {written[name]} → {now}" for name, now in versions().items() if written.get(name, now) != now
        ]
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}): the folder is damaged, take another one") from error
    if not changes:
        return None
    line = f"{folder} was written with other versions: {', '.join(changes)}; results may differ in the last digits"
    logger.warning(line)
    return line


def checkpoints(output_dir: str | os.PathLike) -> list[Path]:
    """The run's `checkpoint-N` folders, by N."""
    found = {
        int(match[1]): path
        for path in Path(output_dir).glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and path.is_dir()
    }
    return [found[step] for step in sorted(found)]


def complete_checkpoints(output_dir: str | os.PathLike) -> list[Path]:
    """Those that hold all that was written into them, by names and sizes."""
    return [path for path in checkpoints(output_dir) if damage_of(path, read=False) is None]


def resumable_checkpoint(checkpoint: str | os.PathLike, command: str) -> Path:
    """
    The folder that a run can go on from: a `checkpoint-N`, or the newest sound one of a run's folder.

    Every file is read and compared with its checksum. Damaged checkpoints of a run are passed over, one logged line
    each.

    Args:
        checkpoint (`str`): either folder.
        command (`str`): who writes such checkpoints, for the message.

    Raises:
        ValueError: it is no folder, holds no sound checkpoint, or one without optimizer state.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        raise ValueError(f"resume={str(checkpoint)!r} is no folder: give a checkpoint-N folder, or the run's folder")
    if re.fullmatch(r"checkpoint-\d+", folder.resolve().name) or (folder / MANIFEST).is_file():
        damage = damage_of(folder)
        if damage is not None:
            raise ValueError(
                f"resume={str(checkpoint)!r} is damaged, {damage}: give the run's folder to go on from its newest "
                "sound checkpoint, or another checkpoint-N"
            )
    else:
        folder = _newest_sound(folder, command)
    # One file from one process; folders of their own from FSDP and DeepSpeed.
    if not any(path.name.startswith(("optimizer", "global_step")) for path in folder.iterdir()):
        raise ValueError(
            f"resume={str(folder)!r} has no optimizer state (written with save_only_model): it would silently start a "
            "new optimizer; start without --resume, or train with save_only_model=false"
        )
    _warn_of_foreign_files(folder)
    warn_of_other_versions(folder)
    return folder


def check_sound(folder: str | os.PathLike) -> None:
    """
    Compare a checkpoint or a finished model with its checksums, before it is loaded; folders without any pass.

    Weights must be as they were written. Other files may have been edited, which is one logged line.

    Raises:
        ValueError: weights are damaged or missing.
    """
    folder = Path(folder)
    changed = []
    for name, damage in damages_of(folder) if (folder / MANIFEST).is_file() else ():
        if name == MANIFEST or Path(name).suffix in (".safetensors", ".bin"):
            raise ValueError(f"model={str(folder)!r} is damaged, {damage}: take another checkpoint or copy it anew")
        changed.append(damage)
    if changed:
        logger.warning("%s is not as it was written, by an edit or by damage: %s", folder, "; ".join(changed))


def _newest_sound(run: Path, command: str) -> Path:
    damaged: list[str] = []
    for folder in reversed(checkpoints(run)):
        damage = damage_of(folder)
        if damage is None:
            for line in damaged:
                logger.warning("%s; going on from %s", line, folder.name)
            return folder
        damaged.append(f"{folder} is damaged, {damage}")
    if damaged:
        raise ValueError(f"resume={str(run)!r} holds no sound checkpoint: {'; '.join(damaged)}. Start anew")
    finished = next((name for name in FINISHED if (run / name).is_dir()), None)
    if finished is not None:
        raise ValueError(
            f"resume={str(run)!r} is a finished run ({finished}) that saved no checkpoint (training.save_strategy): "
            "there is nothing to go on with; train anew with --overwrite, or into another folder with --output_dir"
        )
    raise ValueError(
        f"resume={str(run)!r} holds no complete checkpoint: give a checkpoint-N folder that {command} wrote, or start "
        "without --resume"
    )


def _warn_of_foreign_files(folder: Path) -> None:
    known = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()]
    foreign = sorted(name for name in files if name not in known and name != MANIFEST)
    if foreign:
        logger.warning("%s holds files that were not written with it: %s", folder, ", ".join(foreign[:5]))


def same_recipe_checkpoint(
    checkpoint: str | os.PathLike,
    command: str,
    recipe: Any,
    sections: Sequence[str],
    file: str = RECIPE_FILE,
) -> Path:
    """
    The checkpoint folder, if a run with this recipe can go on from it.

    Args:
        checkpoint, command: as [`resumable_checkpoint`] takes them.
        recipe ([`StageRecipe`]): of the run that wants to go on.
        sections (`Sequence[str]`): those in which both must agree.
        file (`str`): the name of that recipe.

    Raises:
        ValueError: it is no complete checkpoint of this stage, or was trained with other values of these sections.
    """
    folder = resumable_checkpoint(checkpoint, command)
    path = folder / file
    if not path.is_file():
        raise ValueError(f"resume={str(folder)!r} has no {file}: resume only from what {command} wrote")
    saved = type(recipe).load(os.fspath(path))
    for section in sections:
        before, now = getattr(saved, section), getattr(recipe, section)
        for key in sorted({*before, *now}):
            if before.get(key) != now.get(key):
                raise ValueError(
                    f"resume={str(folder)!r} was trained with {section}.{key}={before.get(key)!r}, the recipe says "
                    f"{now.get(key)!r}: use the {file} beside the checkpoint, or start without --resume"
                )
    return folder


def base_of(model: torch.nn.Module) -> PreTrainedModel:
    """The Poise model, inside PEFT or not."""
    from peft import PeftModel  # takes seconds, which who only reads checksums need not wait

    return model.get_base_model() if isinstance(model, PeftModel) else model


def write_run_files(folder: Path, model: torch.nn.Module, recipe: Any) -> None:
    """Configuration, versions and recipe (anything with `save(path)`, or `None`) beside weights; PEFT saves none."""
    base_of(model).config.save_pretrained(folder)
    write_versions(folder)
    if recipe is not None:
        recipe.save(folder / RECIPE_FILE)


def last_checkpoint(output_dir: str | os.PathLike) -> Path | None:
    """The newest `checkpoint-N` of a run that is complete, or `None`."""
    saved = complete_checkpoints(output_dir)
    return saved[-1] if saved else None


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
