"""Where a command writes what it measured on a model: beside the model, if a training run left it there."""

import re
from pathlib import Path

# What `poise sft` leaves in the folder of a run.
_MARKS = ("card_data.json", "recipe.yaml")
_MODELS = ("config.json", "adapter_config.json")


def output_folder(model: str, what: str, chosen: str | None = None) -> Path:
    """
    `chosen`, or `RUN/WHAT` for a training run or its finished model, where the model card finds it, or
    `outputs/WHAT/MODEL`.

    Raises:
        ValueError: that is a file.
    """
    folder = Path(chosen) if chosen else _default(model, what)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output {str(folder)!r} is a file: name a folder.")
    return folder


def run_of(model: str) -> Path | None:
    """
    The folder of the training run that a model belongs to, if it names the run itself or its finished model.

    A checkpoint of a run is none: what is measured on it does not describe what the run ended with.
    """
    path = Path(model)
    if path.name == "model" and path.is_dir() and any((path.parent / mark).is_file() for mark in _MARKS):
        return path.parent
    is_model = any((path / name).is_file() for name in _MODELS)
    holds_one = any((path / "model" / name).is_file() for name in _MODELS) or any(path.glob("checkpoint-*"))
    return path if holds_one and not is_model else None


def _default(model: str, what: str) -> Path:
    run = run_of(model)
    if run is not None:
        return run / what
    parts = [part for part in Path(model).parts if part not in ("/", "..", ".", "outputs", "model")][-2:]
    return Path("outputs", what, re.sub(r"[^\w.=-]+", "-", "-".join(parts)) or "model")
