"""What to evaluate on, by a word of the command line: drawn scenes, or any source that a recipe can name."""

from pathlib import Path
from typing import Any

import yaml
from torch.utils.data import Dataset

from ..processing.records.photo_annotations import SOURCES, records_from_annotations
from ..processing.records.record_data import ChosenRecords
from ..processing.records.record_sources import RecordSource, open_records, parse_source
from ..processing.records.task_record_files import TaskRecords
from ..processing.scenes.scenes import Scenes

SCENES = "scenes"
SPLIT = "validation"  # where the source has splits and names none, as for a recipe's `data.evaluation`


def load_data_source(
    source: str, limit: int | None = None, task: str | None = None, several_images: bool = False
) -> Dataset:
    """Task records of a source.

    Args:
        source (`str`): drawn scenes, as `scenes:SPLIT`, followed by settings of [`Scenes`] if wanted:
            `scenes:test,size=200,image_degradation=blur`; or what a recipe's `data.train` takes: a JSON-lines file, a
            folder, a data set that `datasets` saved, or one of the Hub, with `:SPLIT` behind it where it has several
            (`user/photos:test`), or a mapping in braces (`{name: user/photos, split: test, columns: {question: q}}`).
            Without a split annotated photos are all taken, and of the others "validation".
        limit (`int`, *optional*): only the first so many.
        task (`str`, *optional*): only records of this task, such as "vqa"; scenes are drawn for it, unless their
            settings name tasks.
        several_images (`bool`, *optional*, defaults to `False`): whether a record may have a list of images.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a bad setting of the scenes, a source that is none, a bad record, or a limit below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"samples={limit} must be 1 or more; leave it out for all records.")
    if source == SCENES or source.startswith(f"{SCENES}:"):
        drawn = _scenes(source, task)
        return drawn if limit is None or limit >= len(drawn) else ChosenRecords(drawn, range(limit))
    records = _records(read_source(source), several_images)
    if not len(records):
        raise ValueError(f"data={source!r} holds no record: name another file or split.")
    facts = records.rows(range(len(records)), images=False)
    places = [place for place, record in enumerate(facts) if task in (None, record["task"])]
    if not places:
        raise ValueError(f"data={source!r} holds no record of task {task!r}: name another file or split.")
    return records if len(places[:limit]) == len(records) else ChosenRecords(records, places[:limit])


def read_source(source: str) -> RecordSource:
    """The source that a word names: `NAME`, `NAME:SPLIT`, or a mapping in braces.

    Raises:
        ValueError: braces around no mapping, or a field that is not known.
    """
    if source.startswith("{"):
        try:
            return parse_source(yaml.safe_load(source))
        except yaml.YAMLError as error:
            raise ValueError(
                f"data={source!r} is no mapping ({' '.join(str(error).split())}): write {{name: user/photos, split: "
                "test}, with a space behind each colon."
            ) from None
    name, colon, split = source.rpartition(":")
    if not colon or "://" in source or Path(source).exists():
        return RecordSource(source)
    if not name or not split:
        raise ValueError(f"data={source!r} is neither a name nor NAME:SPLIT, such as user/photos:test.")
    return RecordSource(name, split=split)


def data_name(source: str) -> str:
    """A source by the name that tables give it: a file without the folders it lies in, with its split if it has one."""
    if source.partition(":")[0] == SCENES:
        return source
    read = read_source(source)
    return Path(read.name).name + (f":{read.split}" if read.split else "")


def _records(source: RecordSource, several_images: bool) -> Any:
    path = Path(source.name)
    annotated = (path / "images").is_dir() and any((path / name).is_file() for name in SOURCES.values())
    if annotated and source.split is None:
        records = records_from_annotations(source.name)
        return TaskRecords(records, path.name, places=[record["metadata"]["annotation"] for record in records])
    return open_records(source, SPLIT, several_images=several_images)


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
