"""The task record: one schema for every source. What it holds, and checking that it does."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from numbers import Real
from typing import Any, NotRequired, TypedDict

from PIL import Image

from ..tags import check_tags, check_tags_of_images, invisible_character

TASKS = ("caption", "vqa", "grounding")
PLACEHOLDER = "<image>"  # what chat templates write where an image stands
# What each task needs besides `image` and `task`; a caption's question is its instruction and may be left out.
NEEDED_FIELDS = {"caption": ("captions",), "vqa": ("question", "answers"), "grounding": ("question", "bbox")}
_OPTIONAL_FIELDS = ("id", "question", "answers", "captions", "bbox", "tags", "metadata")
MAX_CHARACTERS = 100_000  # of one text; a tokenizer takes minutes for the megabytes that a broken export runs together
_DESCRIPTIONS = {
    "image": "a file, a list of files, or null for a record of text alone",
    "task": f"one of {', '.join(TASKS)}",
    "question": "a text (for grounding, the expression)",
    "answers": "a list of texts",
    "captions": "a list of texts",
    "bbox": "[x, y, w, h] in pixels of the stored image",
}


class TaskRecord(TypedDict):
    """One sample of any task.

    `image` is a PIL image, a file (relative to the folder of the JSON lines), a list of these, or `None`; `question`
    the question, the instruction of a caption, or the expression of grounding; `bbox` [x, y, w, h] in pixels of the
    stored image; `tags` (name, score) pairs, of several images a list of pairs for each.

    Examples:
        >>> record = TaskRecord(id="1", image="scene.png", task="vqa", question="what color ?", answers=["yellow"])
    """

    id: str
    image: Image.Image | str | list[Image.Image | str] | None
    task: str
    question: NotRequired[str]
    answers: NotRequired[list[str]]
    captions: NotRequired[list[str]]
    bbox: NotRequired[list[float]]
    tags: NotRequired[list[Any]]
    metadata: NotRequired[dict[str, Any]]


class TaskRecordError(ValueError):
    """A record that breaks the schema; the message names the source, the line and the field.

    Examples:
        >>> check_task_record({"image": "1.jpg", "task": "vqa", "answers": ["red"]}, "train.jsonl line 3")
        Traceback (most recent call last):
        poise.processing.records.task_record.TaskRecordError: train.jsonl line 3, field 'question': missing; ...
    """

    def __init__(self, where: str, field: str, problem: str):
        super().__init__(f"{where}, field {field!r}: {problem}")
        self.field = field


class EmptyTextError(TaskRecordError):
    """A text of a record is empty, which real annotations hold now and then: it costs that record, not the run."""


def check_task_record(
    record: Mapping[str, Any], where: str = "record", default_id: str | None = None
) -> dict[str, Any]:
    """Checks a record and returns a tidied copy: absent fields left out, tags sorted, `id` a string.

    The image is neither opened nor looked for; [`TaskRecords`] does that. Whether the box lies inside of it, too.

    Args:
        record: the record; a value of `None` counts as absent, as Arrow columns fill gaps.
        where (`str`, *optional*, defaults to `"record"`): names the record in errors, such as `"train.jsonl line 3"`.
        default_id (`str`, *optional*): the `id` of a record that has none; by default a digest of its content.

    Raises:
        EmptyTextError: a text is empty.
        TaskRecordError: a field is missing, misspelt, of the wrong type or too long, the task is unknown, a tag is bad.

    Examples:
        >>> record = {"id": 1, "image": "1.jpg", "task": "vqa", "question": "what ?", "answers": ["red"], "tags": None}
        >>> check_task_record(record)
        {'id': '1', 'image': '1.jpg', 'task': 'vqa', 'question': 'what ?', 'answers': ['red']}
    """
    if not isinstance(record, Mapping):
        raise TaskRecordError(where, "(all)", f"{record!r} is not an object with fields; see TaskRecord.")
    given = {name: value for name, value in record.items() if value is not None}
    if "image" not in record:
        _raise_missing(where, "image", record)
    if "task" not in given:
        _raise_missing(where, "task", record)
    task = given["task"]
    if task not in TASKS:
        near = get_close_matches(str(task), TASKS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise TaskRecordError(where, "task", f"{task!r} is not known: write {', '.join(TASKS)}.{hint}")
    for field in NEEDED_FIELDS[task]:
        if field not in given:
            _raise_missing(where, field, record)

    _check_spelling(where, record)
    if isinstance(given.get("id"), Mapping | list | tuple):
        raise TaskRecordError(
            where, "id", f"{given['id']!r} is a {type(given['id']).__name__}; give a text or a number."
        )
    checked: dict[str, Any] = {"id": str(given.get("id", default_id or record_digest(given)))}
    unseen = invisible_character(checked["id"])
    if unseen is not None:
        raise TaskRecordError(where, "id", f"{checked['id']!a} holds the invisible character {unseen!a}; remove it.")
    image = checked["image"] = _images(record["image"], where)
    checked["task"] = task
    several = len(image) if isinstance(image, list) else None
    if several and task == "grounding":
        raise TaskRecordError(where, "image", f"a list of {several} images, but a box lies in one; name that one.")
    if "question" in given:
        checked["question"] = _text(given["question"], where, "question")
    for field in ("answers", "captions"):
        if field in given and (given[field] or field in NEEDED_FIELDS[task]):
            checked[field] = _texts(given[field], where, field)
    if "bbox" in given:
        checked["bbox"] = _box(given["bbox"], where)
    if "tags" in given:
        try:
            checked["tags"] = check_tags_of_images(given["tags"], several) if several else check_tags(given["tags"])
        except (TypeError, ValueError) as error:
            raise TaskRecordError(where, "tags", str(error)) from None
    if "metadata" in given:
        if not isinstance(given["metadata"], Mapping):
            raise TaskRecordError(where, "metadata", f"{given['metadata']!r} must be an object.")
        checked["metadata"] = given["metadata"]
    return checked


def record_digest(record: Mapping[str, Any]) -> str:
    """A short name for a record's content without its pixels; the same in every process."""
    words = repr(sorted((name, value) for name, value in record.items() if not _has_pixels(value)))
    return hashlib.sha256(words.encode()).hexdigest()[:12]


def _has_pixels(value: Any) -> bool:
    return isinstance(value, Image.Image) or (isinstance(value, list) and any(map(_has_pixels, value)))


def _images(value: Any, where: str) -> Any:
    """One image, or a list of several; a list of one is that one."""
    if isinstance(value, list | tuple):
        if not value:
            raise TaskRecordError(where, "image", "an empty list; write null for a record of text alone.")
        for place, one in enumerate(value):
            if not isinstance(one, str | Image.Image):
                _raise_type(where, f"image[{place}]", one)
        return list(value) if len(value) > 1 else value[0]
    if not isinstance(value, str | Image.Image | None):
        _raise_type(where, "image", value)
    return value


def _check_spelling(where: str, record: Mapping[str, Any]) -> None:
    """A misspelt optional field would be left out in silence: `tag` for `tags`."""
    absent = [name for name in _OPTIONAL_FIELDS if name not in record]
    for name in record:
        if name not in (*_OPTIONAL_FIELDS, "image", "task"):
            near = get_close_matches(str(name).lower(), absent, n=1, cutoff=0.8)
            if near:
                raise TaskRecordError(where, str(name), f"not known; did you mean {near[0]!r}? Rename or remove it.")


def _raise_missing(where: str, field: str, record: Mapping[str, Any]) -> None:
    near = get_close_matches(field, [name for name in record if name != field], n=1)
    hint = f" Did you mean {near[0]!r} by it?" if near else ""
    raise TaskRecordError(where, field, f"missing; give {_DESCRIPTIONS[field]}.{hint}")


def _raise_type(where: str, field: str, value: Any) -> None:
    shown = repr(value)
    shown = shown if len(shown) <= 200 else f"{shown[:200]}…"
    raise TaskRecordError(
        where, field, f"{shown} is a {type(value).__name__}; give {_DESCRIPTIONS[field.partition('[')[0]]}."
    )


def _text(value: Any, where: str, field: str, place: str | None = None) -> str:
    if not isinstance(value, str):
        raise TaskRecordError(where, place or field, f"{value!r} is a {type(value).__name__}; give a text.")
    if not value.strip():
        raise EmptyTextError(where, place or field, "empty; write the text, or leave the record out.")
    if len(value) > MAX_CHARACTERS:
        problem = f"{len(value):,} characters, more than {MAX_CHARACTERS:,}; cut the text, or leave the record out."
        raise TaskRecordError(where, place or field, problem)
    if PLACEHOLDER in value:
        problem = f"{value!r} holds {PLACEHOLDER}, which would ask for one more image; leave it out of the text."
        raise TaskRecordError(where, place or field, problem)
    return value


def _texts(value: Any, where: str, field: str) -> list[str]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        _raise_type(where, field, value)
    if len(value) == 0:
        raise TaskRecordError(where, field, f"empty; give {_DESCRIPTIONS[field]}.")
    return [_text(text, where, field, f"{field}[{place}]") for place, text in enumerate(value)]


def _box(value: Any, where: str) -> list[float]:
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) != 4:
        raise TaskRecordError(where, "bbox", f"{list(value)!r} has {len(value)} numbers; give {_DESCRIPTIONS['bbox']}.")
    if isinstance(value, str) or not isinstance(value, Sequence):
        _raise_type(where, "bbox", value)
    if not all(isinstance(side, Real) and not isinstance(side, bool) for side in value):
        _raise_type(where, "bbox", value)
    if not all(math.isfinite(side) for side in value):
        raise TaskRecordError(where, "bbox", f"{list(value)} is not finite; give {_DESCRIPTIONS['bbox']}.")
    return [float(side) for side in value]
