"""Tags that another tagger (such as RAM) wrote down: looked up, not computed."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..tags import Tag, check_tags
from .json_lines import json_lines


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
