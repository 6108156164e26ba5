"""Where a command writes what it measured on a model: beside the model, if a training run left it there."""

import re
from pathlib import Path

# What `poise sft` leaves in the folder of a run.
_MARKS = ("card_data.json", "recipe.yaml")


def output_folder(model: str, what: str, chosen: str | None = None) -> Path:
    """
    `chosen`, or `RUN/WHAT` for `RUN/model` of a training run, where the model card finds it, or `outputs/WHAT/MODEL`.

    Raises:
        ValueError: that is a file.
    """
    folder = Path(chosen) if chosen else _default(model, what)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output {str(folder)!r} is a file: name a folder.")
    return folder


def _default(model: str, what: str) -> Path:
    path = Path(model)
    if path.is_dir() and path.name == "model" and any((path.parent / mark).is_file() for mark in _MARKS):
        return path.parent / what
    parts = [part for part in path.parts if part not in ("/", "..", ".", "outputs", "model")][-2:]
    return Path("outputs", what, re.sub(r"[^\w.=-]+", "-", "-".join(parts)) or "model")
