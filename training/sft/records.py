"""The records that a recipe names: one source or a mixture of several, read by row number or as a stream."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import ConcatDataset

from ...processing.image_loading import MAX_PIXELS
from ...processing.records.endless_records import EndlessRecords
from ...processing.records.photo_annotations import SOURCES
from ...processing.records.record_data import ChosenRecords, RecordMixture
from ...processing.records.record_sources import SCENES, RecordSource, open_records, parse_source, stream_records
from ..feature_cache.cached_records import with_tags_of
from ..recipe_loading import check_scenes
from .recipe import Recipe


def load_records(recipe: Recipe) -> tuple[Any, Any]:
    """
    Training records and evaluation records (or `None`).

    Training records are a map-style data set, or with `data.streaming` a stream without an end; evaluation records are
    always a map-style data set. Images are opened when they are asked for.

    Raises:
        ValueError: a source holds nothing, or a record is wrong; the message names file, line and field.
    """
    seed, data = recipe.seed, recipe.data
    train: Any
    sources = _within(record_sources(data["train"], "train", data), recipe)
    if data["streaming"]:
        _check_streaming(recipe)
        weights = [1.0 if source.weight is None else source.weight for source in sources]
        streams = [stream_records(source, "train", seed) for source in sources]
        train = EndlessRecords(streams, weights, seed, data["shuffle_buffer"])
        held_out = _evaluation_parts(sources, recipe)
    else:
        several = _reads_several_images(recipe)
        parts = [open_records(source, "train", seed, several) for source in sources]
        for part, source in zip(parts, sources, strict=True):
            if len(part) == 0:
                raise ValueError(f"data.train={source.name!r} holds no records: nothing to train on")
        held_out = _evaluation_parts(sources, recipe)  # whose mistakes are found before a tagger runs
        train = _mixed([_tagged(part, recipe) for part in parts], sources, seed)
    evaluation = [_tagged(part, recipe) for part in held_out]
    return train, evaluation[0] if len(evaluation) == 1 else ConcatDataset(evaluation) if evaluation else None


def record_sources(entries: Any, key: str, data: Mapping[str, Any]) -> list[RecordSource]:
    """The sources of `data.train` or `data.evaluation`: a name, a mapping, or a list of either.

    Raises:
        ValueError: an entry that is no source, or an empty list.
    """
    entries = entries if isinstance(entries, list | tuple) else [entries]
    if not entries:
        raise ValueError(f"data.{key} is an empty list: name at least one source")
    sources = []
    for entry in entries:
        try:
            source = parse_source(entry)
        except ValueError as error:
            raise ValueError(f"data.{key}: {error}") from None
        changes: dict[str, Any] = {}
        if source.image_folder is None:
            changes["image_folder"] = data["image_folder"]
        if source.name == SCENES and not source.scenes:
            changes["scenes"] = data["scenes"] or {}
        sources.append(RecordSource(**{**vars(source), **changes}))
        if source.name == SCENES:
            check_scenes(sources[-1].scenes, "data.scenes" if "scenes" in changes else f"data.{key}: scenes")
    return sources


def _mixed(parts: Sequence[Any], sources: Sequence[RecordSource], seed: int) -> Any:
    if len(parts) == 1:
        return parts[0]
    weights = [source.weight for source in sources]
    if all(weight is None for weight in weights):
        return RecordMixture(parts, None, seed)
    # Among weights a source without one counts once.
    return RecordMixture(parts, [1.0 if weight is None else weight for weight in weights], seed)


def _evaluation_parts(train: Sequence[RecordSource], recipe: Recipe) -> list[Any]:
    entries, limit = recipe.data.evaluation, recipe.data.evaluation_samples
    if entries is not None:
        sources = _within(record_sources(entries, "evaluation", recipe.data), recipe)
    else:
        # Annotated photos bring their own held-out part.
        sources = [source for source in train if _is_annotated(source)]
    parts = [open_records(source, "validation", recipe.seed, _reads_several_images(recipe)) for source in sources]
    total = sum(map(len, parts))
    if limit is not None and total > limit:
        # Evenly over the whole: the first records of a file are often all of one task.
        places = [index * total // limit for index in range(limit)]
        starts = itertools.accumulate(map(len, parts), initial=0)
        parts = [
            ChosenRecords(part, [place - start for place in places if start <= place < start + len(part)])
            for part, start in zip(parts, starts, strict=False)
        ]
    return [part for part in parts if len(part)]


def _within(sources: Sequence[RecordSource], recipe: Recipe) -> list[RecordSource]:
    """The sources with the recipe's limit on images, where they bring none of their own."""
    limit = recipe.processor.get("max_pixels", MAX_PIXELS)
    return [source if source.max_pixels else dataclasses.replace(source, max_pixels=limit) for source in sources]


def _reads_several_images(recipe: Recipe) -> bool:
    one = (recipe.data.feature_cache, recipe.data.packing, recipe.data.tagger, recipe.model.align_pictures)
    return not any(one)


def _is_annotated(source: RecordSource) -> bool:
    path = Path(source.name)
    return (path / "images").is_dir() and any((path / name).is_file() for name in SOURCES.values())


def _check_streaming(recipe: Recipe) -> None:
    if int(recipe.training.get("max_steps") or 0) <= 0:
        raise ValueError("data.streaming=true has no end: set training.max_steps")
    for key in ("feature_cache", "tagger"):
        if recipe.data[key]:
            raise ValueError(f"data.streaming=true has no row numbers, which data.{key} needs: drop one of them")
    if recipe.model.align_pictures:
        raise ValueError("data.streaming=true has no row numbers, which model.align_pictures needs: set it to 0")


def _tagged(records: Any, recipe: Recipe) -> Any:
    """The records with the tags of `data.tagger`, where the recipe names one."""
    tagger = recipe.data.tagger
    return records if tagger is None else with_tags_of(tagger, records, Path(recipe.training["output_dir"]) / "tags")
