"""Captioned records that pass by in batches, so that a pool of any size can be looked through once."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...evaluation.data_sources import load_data_source
from ...processing.image_loading import open_image
from ...processing.records.json_lines import json_lines
from ...processing.records.record_images import path_inside
from ...processing.records.task_record import check_task_record
from ...processing.scenes.scenes import Scenes

Record = dict[str, Any]


class RecordStream:
    """
    Records with captions, without their images decoded.

    Args:
        source (`str`): a JSON-lines file of task records, or `scenes:SPLIT,name=value`.
        batch_size (`int`): records at once.
        image_folder (`str`, *optional*): what image paths are relative to; the file's folder by default.

    Raises:
        ValueError, FileNotFoundError: the source is neither, or (while it is read) a line is wrong.
    """

    def __init__(self, source: str, batch_size: int, image_folder: str | None = None):
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be 1 or more")
        self.source, self.batch_size = source, batch_size
        self.scenes: Scenes | None = None
        self.image_folder = Path(image_folder or Path(source).parent)
        if not Path(source).is_file():
            records = load_data_source(source)
            if not isinstance(records, Scenes):
                raise ValueError(
                    f"{source!r} cannot be streamed: give a JSON-lines file of task records, or scenes:SPLIT"
                )
            self.scenes = records

    def __iter__(self) -> Iterator[list[Record]]:
        """Batches of checked records; those without captions are passed over."""
        records = (record for record in self._all() if record.get("captions"))
        return iter(lambda: list(islice(records, self.batch_size)), [])

    def _all(self) -> Iterator[Record]:
        if self.scenes is not None:
            for start in range(0, len(self.scenes), self.batch_size):
                rows = np.arange(start, min(start + self.batch_size, len(self.scenes)))
                yield from self.scenes.records(rows, images=False)
            return
        path = Path(self.source)
        for number, row in json_lines(path):
            yield check_task_record(row, f"{path.name} line {number}", default_id=f"{path.stem}-{number - 1}")

    def image(self, record: Record) -> Image.Image:
        """
        The decoded image of a record of this stream.

        Raises:
            FileNotFoundError, ValueError: there is none, or it cannot be read.
        """
        if self.scenes is not None:
            return self.scenes[record["metadata"]["scene"]]["image"]
        if record["image"] is None:
            raise ValueError(f"record {record['id']!r} of {self.source!r} has no image to compare")
        return open_image(path_inside(self.image_folder, record["image"]), turn_upright="bbox" not in record)

    def for_writing(self, record: Record) -> Record:
        """The record with what `write_task_records` needs: an image, or its path from here."""
        if self.scenes is not None:
            return {**record, "image": self.image(record)}
        return {**record, "image": str(path_inside(self.image_folder, record["image"]))}
