"""Lets the commands that measure a model take a run of `poise sft`: its folder, or one of its checkpoints.

`evaluation/` does not know `training/`; the two meet here.
"""

from typing import Any


def load_run(name: str) -> tuple[Any, Any] | None:
    """Model with its adapters merged and processor of a local run, or `None` for anything else."""
    from pathlib import Path

    if not Path(name).is_dir():
        return None
    from poise.training.merging import is_run, merged_model

    return merged_model(name) if is_run(name) else None
