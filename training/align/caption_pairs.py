"""Images with their captions, from drawn scenes or task records, decoding none before it is asked for."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from ...evaluation.data_sources import load_data_source, read_source
from ...processing.records.record_sources import open_records
from ...processing.scenes.scenes import Scenes

SCENES = "scenes"
_JOINTS = re.compile(r"\s*[,;:.]+\s*|\s+and\s+")


def caption_parts(caption: str) -> list[str]:
    """
    The phrases of a caption, cut at its commas, colons, stops and "and"; those of one word are left out.

    A caption that tells all of an image is never true of another one, so the encoder learns what "a red square" means
    only where nothing else is in the image. Its phrases are true of many images (the idea of DreamLIP's
    sub-captions, arXiv 2403.17007, section 3.2, without a language model to write them).
    """
    parts = [part.strip() for part in _JOINTS.split(caption)]
    return [part for part in parts if " " in part and part != caption]


class CaptionPairs:
    """
    N images, each with one caption or more.

    Args:
        records ([`Scenes`] or [`TaskRecords`]): records without captions are passed over.
        source (`str`): names the records in errors.

    Raises:
        ValueError: no record has an image and a caption.
    """

    def __init__(self, records: Any, source: str):
        self.records, self.source = records, source
        facts = records.rows(range(len(records)), images=False)
        self.rows = [row for row, record in enumerate(facts) if record.get("captions")]
        self.facts = [facts[row] for row in self.rows]
        if not self.rows:
            raise ValueError(f"{source!r} holds no record with captions: alignment needs images with captions")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def captions(self) -> list[list[str]]:
        """Per image, its captions."""
        return [list(record["captions"]) for record in self.facts]

    def images(self, indices: Sequence[int]) -> list[Image.Image]:
        """The images at these places, as RGB."""
        return [record["image"] for record in self.records.rows([self.rows[index] for index in indices])]

    def names_present(self) -> list[set[str]]:
        """
        Per image, the names of what is in it: a scene's objects, `metadata["labels"]`, or the record's own tags with
        a score of at least 0.5; empty where nothing is known.
        """
        names = []
        for record in self.facts:
            metadata = record.get("metadata") or {}
            if "objects" in metadata:
                names.append({f"{item['color']} {item['shape']}" for item in metadata["objects"]})
            elif "labels" in metadata:
                names.append(set(metadata["labels"]))
            else:
                names.append({name for name, score in record.get("tags") or [] if score >= 0.5})
        return names

    def identity(self) -> dict[str, Any]:
        """What tells these images from others, for the key of a feature cache."""
        return {"records": self.records.identity(), "rows": self.rows}


def load_pairs(
    source: str,
    split: str | None,
    scenes: Mapping[str, Any] | None = None,
    image_folder: str | None = None,
    seed: int = 0,
) -> CaptionPairs:
    """
    Pairs of a source.

    Args:
        source (`str`): "scenes" (with the settings in `scenes`), `scenes:SPLIT,name=value`, or what
            `evaluation.data_sources.load_data_source` reads: a JSON-lines file of task records, a folder, a data set on
            disk or of the Hub.
        split (`str` or `None`): of a source that has several and names none. `None` takes all of annotated photos, and
            "validation" of the others.
        scenes (*optional*): arguments of [`Scenes`].
        image_folder (*optional*): what the records' image paths are relative to.

    Raises:
        FileNotFoundError, ValueError: the source is not there, or holds no pairs.
    """
    if source == SCENES:
        settings = {"seed": seed, **dict(scenes or {}), "tasks": ["caption"]}
        return CaptionPairs(Scenes(split or "validation", **settings), f"{SCENES}:{split or 'validation'}")
    if split is None or source.startswith(f"{SCENES}:"):
        return CaptionPairs(load_data_source(source), source)
    named = read_source(source)
    if image_folder is not None:
        named = dataclasses.replace(named, image_folder=image_folder)
    return CaptionPairs(open_records(named, split, seed), source)
