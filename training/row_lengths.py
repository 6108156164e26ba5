"""How long records become as rows of tokens, without opening a picture: what length-grouped sampling sorts by."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from tqdm.auto import tqdm

from poise.processing import TrainingCollator
from poise.training.cached_records import PictureOfSize, without_pictures, without_pixels

BLOCK = 512  # records tokenized together


def row_lengths(records: Any, collator: TrainingCollator) -> list[int]:
    """
    Tokens of each record's row, prompt and answer, after the cut to `max_length`.

    A `length` column that the records bring is taken as it is. The length of a spoken box depends on the picture's
    size, which is not read: there the count may be off by a token or two.

    Args:
        records: a map-style data set of task records.
        collator ([`TrainingCollator`]): makes the rows.
    """
    given = getattr(records, "lengths", None)
    if given is not None:
        return list(given)
    bare = copy.copy(collator)
    bare.processor = without_pixels(collator.processor)
    lengths: list[int] = []
    starts = range(0, len(records), BLOCK)
    for start in tqdm(starts, desc="row lengths", unit="block", disable=len(starts) < 20, leave=False):
        block = range(start, min(start + BLOCK, len(records)))
        lengths += [len(prompt) + len(answer) for prompt, answer in bare.fitted_rows(_plain(records, block))[0]]
    return lengths


def _plain(records: Any, indices: Sequence[int]) -> list[dict[str, Any]]:
    return [
        {**record, "image": _stand_in(record) if record["image"] is not None or _is_scene(record) else None}
        for record in without_pictures(records, indices)
    ]


def _is_scene(record: Mapping[str, Any]) -> bool:
    """Drawn scenes, wherever they are mixed in, are read without their pictures, which they all have."""
    return "scene" in (record.get("metadata") or {})


def _stand_in(record: Mapping[str, Any]) -> Image.Image:
    """An empty picture that a box of the record lies in."""
    if isinstance(record["image"], PictureOfSize):
        return record["image"]
    x, y, width, height = record.get("bbox") or (0, 0, 1, 1)
    return Image.new("1", (max(1, int(x + width) + 1), max(1, int(y + height) + 1)))
