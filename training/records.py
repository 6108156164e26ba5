"""The records that a recipe names: drawn scenes, a JSON-lines file, or a folder of annotated photos."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset, Subset

from poise.processing.photo_annotations import records_from_annotations, split_by_photo
from poise.processing.scenes import Scenes
from poise.processing.task_record_files import TaskRecords, load_task_records
from poise.training.recipe import Recipe
from poise.training.record_tags import with_tags_of

SCENES = "scenes"


def load_records(recipe: Recipe) -> tuple[Dataset, Sequence[dict[str, Any]] | None]:
    """
    Training records and evaluation records (or `None`), as map-style data sets that open images on access.

    Raises:
        ValueError: the source holds nothing, or a record is wrong; the message names file, line and field.
    """
    seed = recipe.training.get("seed", 42)
    train = _source(recipe.data["train"], "train", recipe, seed)
    evaluation = recipe.data["evaluation"]
    if evaluation is None and isinstance(train, tuple):
        evaluation = train[1]
    elif evaluation is not None:
        evaluation = _source(evaluation, "validation", recipe, seed)
        evaluation = evaluation[1] if isinstance(evaluation, tuple) else evaluation
    train = train[0] if isinstance(train, tuple) else train
    if len(train) == 0:
        raise ValueError(f"data.train={recipe.data['train']!r} holds no records: nothing to train on")
    limit = recipe.data["evaluation_samples"]
    if evaluation is not None and limit is not None and len(evaluation) > limit:
        # Evenly over the whole: the first records of a file are often all of one task.
        evaluation = Subset(evaluation, [index * len(evaluation) // limit for index in range(limit)])
    return _tagged(train, recipe), _tagged(evaluation, recipe)


def _tagged(records, recipe: Recipe):
    """The records with the tags of `data.tagger`, where the recipe names one."""
    tagger = recipe.data["tagger"]
    if tagger is None or records is None:
        return records
    return with_tags_of(tagger, records, Path(recipe.training.get("output_dir", "outputs/sft")) / "tags")


def _source(source: str, split: str, recipe: Recipe, seed: int):
    """One data set, or a (train, validation) pair where the source brings both."""
    if source == SCENES:
        settings = dict(recipe.data["scenes"] or {})
        size = settings.pop("size", None) if split == "train" else None
        settings.pop("size", None)
        return Scenes(split, size=size, seed=settings.pop("seed", seed), **settings)
    path = Path(source)
    if path.is_dir() and not (path / "train.jsonl").is_file():
        return _annotated_photos(path, seed)
    if path.is_dir():
        path = path / f"{split}.jsonl"
    return load_task_records(os.fspath(path), image_folder=recipe.data["image_folder"])


def _annotated_photos(folder: Path, seed: int):
    """Photos with published annotations, a tenth of the photos held out for evaluation."""
    parts = split_by_photo(records_from_annotations(folder, seed=seed), seed=seed)
    return TaskRecords(parts["train"]), TaskRecords(parts["validation"])
