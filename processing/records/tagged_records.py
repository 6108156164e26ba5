"""Task records with the tags of a tagger in place of their own; a tagger may be a file that another one (such as RAM)
wrote: its tags are looked up, not computed."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..taggers import TAGGER_FILE, DualEncoderTagger, ZeroShotTagger
from ..tags import Tag, check_tags
from .json_lines import json_lines
from .record_data import RecordDataset, rows_of


class PrecomputedTags:
    """
    Tags that somebody wrote down, by the record's `id` or else by the name of its image file.

    Args:
        tags (`Mapping[str, Sequence]`): id or file name → (name, score) pairs.

    Raises:
        ValueError, TypeError: a tag is wrong; the message names whose.

    Examples:
        >>> tags = PrecomputedTags({"scene.png": [("yellow star", 0.9)]})
        >>> tags.tag_records([{"id": "1", "image": "photos/scene.png"}])
        [[Tag(name='yellow star', score=0.9)]]
    """

    reads_images = False

    def __init__(self, tags: Mapping[str, Sequence[Any]]):
        self.tags = {key: check_tags(own, f"tags of {key!r}") for key, own in tags.items()}

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]], source: str = "rows") -> "PrecomputedTags":
        """From rows with `tags` and `id` or `image` (a file), such as a `datasets` column."""
        tags: dict[str, Sequence[Any]] = {}
        for number, row in enumerate(rows, start=1):
            key = row.get("id") or row.get("image")
            if not isinstance(key, str) or "tags" not in row:
                raise ValueError(f'{source}, row {number}: give "tags" and "id" or "image", not {sorted(row)}.')
            tags[key if row.get("id") else Path(key).name] = row["tags"]
        return cls(tags)

    @classmethod
    def from_file(cls, path: str | os.PathLike) -> "PrecomputedTags":
        """
        From JSON lines such as `{"image": "photo.jpg", "tags": [["dog", 0.97]]}`.

        Raises:
            FileNotFoundError, ValueError: no such file, or a line that is no such object.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"tagger={str(path)!r}: there is no such file of tags; check the path.")
        return cls.from_rows([row for _, row in json_lines(path)], path.name)

    def tag_records(self, records: Sequence[Mapping[str, Any]]) -> list[list[Tag]]:
        """
        Raises:
            ValueError: a record is not among them.
        """
        found = []
        for record in records:
            name = Path(record["image"]).name if isinstance(record["image"], str) else None
            key = next((key for key in (record.get("id"), name) if key in self.tags), None)
            if key is None:
                raise ValueError(
                    f"no tags were written down for record {record.get('id')!r} with the image {name!r}: add them, "
                    "with an empty list for an image without tags."
                )
            found.append(self.tags[key])
        return found


class TaggedRecords(RecordDataset):
    """Task records whose tags come from a tagger, at the moment they are read.

    Examples:
        >>> records = TaggedRecords(load_task_records("records.jsonl"), load_tagger("tags.jsonl"))
        >>> records[0]["tags"]
        [Tag(name='yellow star', score=0.9)]
    """

    def __init__(self, records: Any, tagger: Any):
        self.records, self.tagger = records, tagger

    def __len__(self) -> int:
        return len(self.records)

    def rows(self, indices: Sequence[int], images: bool = True) -> list[dict[str, Any]]:
        looks = getattr(self.tagger, "reads_images", True)
        records = rows_of(self.records, indices, images or looks)
        # Tags that were written down go by the names of files, which opened images have no more.
        tags = self.tagger.tag_records(records if looks else rows_of(self.records, indices, images=False))
        return [{**record, "tags": own} for record, own in zip(records, tags, strict=True)]


def load_tagger(name: str | os.PathLike, vocabulary: Sequence[str] | None = None) -> Any:
    """
    The tagger that a word of a recipe or a command line means.

    Args:
        name (`str`): a JSON-lines file of tags, the folder of a dual encoder, or a folder of any model that
            [`ModelTagger`] takes. (`poise tag` takes Hub ids, too, and writes the tags into the records once.)
        vocabulary (`Sequence[str]`, *optional*): what a zero-shot model looks for; by default COCO's object categories.

    Raises:
        FileNotFoundError, ValueError: it is none of these.

    Examples:
        >>> tagger = load_tagger("tags.jsonl")  # lines such as {"id": "1", "tags": [["yellow star", 0.9]]}
    """
    if not Path(name).is_dir():
        return PrecomputedTags.from_file(name)
    if (Path(name) / TAGGER_FILE).is_file() or not (Path(name) / "config.json").is_file():
        return DualEncoderTagger.from_pretrained(name)
    from transformers import AutoConfig, AutoModelForZeroShotImageClassification, AutoProcessor

    from .model_tagger import COCO_OBJECTS, NEEDS_VOCABULARY, ZERO_SHOT_CLASSIFIER, ModelTagger, kind_of

    config = AutoConfig.from_pretrained(name)
    if config.model_type.startswith("poise"):  # a dual encoder without its vocabulary, which it says
        return DualEncoderTagger.from_pretrained(name)
    kind = kind_of(config)
    words = list(vocabulary or COCO_OBJECTS)
    if kind != ZERO_SHOT_CLASSIFIER:
        return ModelTagger.from_pretrained(name, words if kind in NEEDS_VOCABULARY else None)
    model = AutoModelForZeroShotImageClassification.from_pretrained(name)
    return ZeroShotTagger(model, AutoProcessor.from_pretrained(name), words)
