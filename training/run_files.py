"""The versions that a checkpoint was written with, and one line where they are others than today's."""

import json
import logging
import os
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel
from transformers.trainer import TRAINER_STATE_NAME

from .atomic_folders import clear_aside, missing_files

logger = logging.getLogger(__name__)

VERSIONS_FILE = "versions.json"
_PACKAGES = ("poise", "torch", "transformers", "peft", "accelerate", "safetensors")


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
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): the folder is damaged, take another one") from error
    changes = [f"{name} {written[name]} → {now}" for name, now in versions().items() if written.get(name, now) != now]
    if not changes:
        return None
    line = f"{folder} was written with other versions: {', '.join(changes)}; results may differ in the last digits"
    logger.warning(line)
    return line


def complete_checkpoints(output_dir: str | os.PathLike) -> list[Path]:
    """The run's `checkpoint-N` folders that hold all that was written into them, by N."""
    found = {
        int(match[1]): path
        for path in Path(output_dir).glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
        and (path / TRAINER_STATE_NAME).is_file()
        and not missing_files(path)
    }
    return [found[step] for step in sorted(found)]


def resumable_checkpoint(checkpoint: str | os.PathLike, command: str) -> Path:
    """
    The folder that a run can go on from: a `checkpoint-N`, or the newest complete one of a run's folder.

    Args:
        checkpoint (`str`): either folder.
        command (`str`): who writes such checkpoints, for the message.

    Raises:
        ValueError: it is no folder, holds no complete checkpoint, or one without optimizer state.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        raise ValueError(f"resume={str(checkpoint)!r} is no folder: give a checkpoint-N folder, or the run's folder")
    torn = missing_files(folder)
    if torn:
        raise ValueError(
            f"resume={str(folder)!r} is torn, {torn[0]} is missing or of another size: give the run's folder to go on "
            "from its newest complete checkpoint"
        )
    if not (folder / TRAINER_STATE_NAME).is_file():
        clear_aside(folder)
        saved = complete_checkpoints(folder)
        if not saved:
            raise ValueError(
                f"resume={str(checkpoint)!r} holds no complete checkpoint (no {TRAINER_STATE_NAME}): give a "
                f"checkpoint-N folder that {command} wrote, or start without --resume"
            )
        folder = saved[-1]
    # One file from one process; folders of their own from FSDP and DeepSpeed.
    if not any(path.name.startswith(("optimizer", "global_step")) for path in folder.iterdir()):
        raise ValueError(
            f"resume={str(folder)!r} has no optimizer state (written with save_only_model): it would silently start a "
            "new optimizer; start without --resume, or train with save_only_model=false"
        )
    warn_of_other_versions(folder)
    return folder


RECIPE_FILE = "recipe.yaml"


def base_of(model: torch.nn.Module) -> PreTrainedModel:
    """The Poise model, inside PEFT or not."""
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
