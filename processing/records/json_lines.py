"""JSON and JSON lines as people write them: line numbers, a byte-order mark, and every mistake told in one line.

Rows keep the place where they stand, so that a mistake that is found later is told with its file, line and field.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .task_record import TaskRecordError


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file that are not empty, with their numbers from 1; a byte-order mark is left out.

    Raises:
        TaskRecordError: the file is not text in UTF-8.
    """
    with open(path, encoding="utf-8-sig") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, line
        except UnicodeDecodeError as error:
            problem = f"not text in UTF-8 ({error.reason}); save it as JSON lines in UTF-8."
            raise TaskRecordError(path.name, "(all)", problem) from None


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON text.

    Args:
        where (`str`): what the error calls the text, such as `"train.jsonl line 3"`.

    Raises:
        TaskRecordError: not JSON, nested too deep, a key that stands twice in one object, or half a surrogate pair
            (which no file can store and no tokenizer reads).
    """
    try:
        value = json.loads(text, object_pairs_hook=lambda pairs: _object(pairs, where))
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise TaskRecordError(where, "(all)", f"not JSON ({error.msg} at {line}column {error.colno}).") from None
    except RecursionError:
        raise TaskRecordError(where, "(all)", "nested too deep; write it flat.") from None
    if "\\u" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            problem = f"holds {error.object[error.start]!a}, half of a surrogate pair; write the character itself."
            raise TaskRecordError(where, "(all)", problem) from None
    return value


def read_text(path: Path) -> str:
    """What a text file holds, without a byte-order mark. Raises as [`text_lines`], naming the file."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TaskRecordError(path.name, "(all)", f"not text in UTF-8 ({error.reason}); save it in UTF-8.") from None


def read_json(path: Path) -> Any:
    """The value of a file that is one JSON document. Raises as [`text_lines`] and [`parse_json`], naming the file."""
    return parse_json(read_text(path), path.name)


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, value) of a JSON-lines file. Raises as [`text_lines`] and [`parse_json`], naming file and line."""
    for number, line in text_lines(path):
        yield number, parse_json(line, f"{path.name} line {number}")


def _object(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise TaskRecordError(where, twice, "stands twice in one object; keep one of them.")
    return value


class RowError(ValueError):
    """What is wrong with a field of the row at hand; whoever knows where the row stands adds that.

    Examples:
        >>> RowError("conversations[1]", "3 is no object with a role and a text.").field
        'conversations[1]'
    """

    def __init__(self, field: str, problem: str):
        super().__init__(f"field {field!r}: {problem}")
        self.field, self.problem = field, problem


class PlacedRows:
    """Rows with their places; while they are gone through, `place` is that of the row at hand, else `None`.

    Args:
        rows (`Iterable`): read once for each pass; lists may be passed again and again.
        places (`Iterable[str]`): such as `"train.jsonl line 3"`, one for each row.

    Raises:
        TaskRecordError: a row that is reached is no mapping.
    """

    def __init__(self, rows: Iterable[Any], places: Iterable[str]):
        self.rows, self.places = rows, places
        self.place: str | None = None

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for place, row in zip(self.places, self.rows, strict=False):
            self.place = place
            if not isinstance(row, Mapping):
                raise TaskRecordError(
                    place, "(all)", f"{repr(row)[:100]} is not an object with fields; mend or remove it."
                )
            yield row
        self.place = None


def entries_of(document: Any, name: str) -> Any:
    """A JSON document with its lists of rows as [`PlacedRows`]: the document itself, or the lists of its fields."""
    if isinstance(document, Sequence) and not isinstance(document, str):
        return PlacedRows(document, [f"{name} entry {number}" for number in range(1, len(document) + 1)])
    if isinstance(document, Mapping):
        return {
            field: PlacedRows(value, [f"{name} {field}[{number}]" for number in range(len(value))])
            if isinstance(value, list)
            else value
            for field, value in document.items()
        }
    return document


def place_in(document: Any) -> str | None:
    """Where the row stands that is being read of a document, or of a list of documents; `None` between rows."""
    if isinstance(document, PlacedRows):
        return document.place
    parts = document.values() if isinstance(document, Mapping) else document if isinstance(document, list) else ()
    return next((place for part in parts if (place := place_in(part)) is not None), None)
