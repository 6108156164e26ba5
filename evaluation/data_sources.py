"""What to evaluate on, by a word of the command line: a file of task records, a folder of photos, or drawn scenes."""

from pathlib import Path
from typing import Any

from torch.utils.data import Dataset, Subset

from poise.processing.photo_annotations import records_from_annotations
from poise.processing.scenes import Scenes
from poise.processing.task_record_files import TaskRecords, load_task_records

SCENES = "scenes"


def load_data_source(source: str, limit: int | None = None, task: str | None = None) -> Dataset:
    """Task records of a source.

    Args:
        source (`str`): a JSON-lines file of task records; a folder of annotated photos; or drawn scenes, as
            `scenes:SPLIT`, followed by settings of [`Scenes`] if wanted: `scenes:test,size=200,image_degradation=blur`.
        limit (`int`, *optional*): only the first so many.
        task (`str`, *optional*): only records of this task, such as "vqa"; scenes are drawn for it, unless their
            settings name tasks.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a bad setting of the scenes, a bad record, or a limit below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} must be 1 or more; leave it out for all records.")
    if source == SCENES or source.startswith(f"{SCENES}:"):
        records: Any = _scenes(source, task)
    elif Path(source).is_dir():
        annotated = [row for row in records_from_annotations(source) if task in (None, row["task"])]
        records = TaskRecords(annotated[:limit], Path(source).name)
    else:
        records = load_task_records(source)
        if task is not None:
            places = [place for place, record in enumerate(records.records) if record["task"] == task]
            return Subset(records, places[:limit])
    return records if limit is None or limit >= len(records) else Subset(records, range(limit))


def data_name(source: str) -> str:
    """A source by the name that tables give it: a file without the folders it lies in."""
    return source if source.partition(":")[0] == SCENES else Path(source).name


def _scenes(source: str, task: str | None) -> Scenes:
    split, *settings = source.partition(":")[2].split(",")
    arguments: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"data={source!r}: {setting!r} is no setting; write name=value, such as size=200.")
        arguments[name.strip()] = _value(value.strip())
    for name in ("tasks", "question_types"):
        if isinstance(arguments.get(name), str):
            arguments[name] = [arguments[name]]
    if task is not None:
        arguments.setdefault("tasks", [task])
    try:
        return Scenes(split or "test", **arguments)
    except TypeError as error:
        raise ValueError(f"data={source!r}: {error}; see the arguments of Scenes.") from None


def _value(text: str) -> Any:
    """A number, a list (parts joined by +), or a word."""
    if "+" in text:
        return [_value(part) for part in text.split("+")]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
