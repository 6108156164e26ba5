"""JSON and JSON lines as people write them: line numbers, a byte-order mark, and every mistake told in one line."""

import json
from collections.abc import Iterator
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
        raise TaskRecordError(where, "(all)", f"not JSON ({error.msg} at column {error.colno}).") from None
    except RecursionError:
        raise TaskRecordError(where, "(all)", "nested too deep; write one flat object a record.") from None
    if "\\u" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            problem = f"holds {error.object[error.start]!a}, half of a surrogate pair; write the character itself."
            raise TaskRecordError(where, "(all)", problem) from None
    return value


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
