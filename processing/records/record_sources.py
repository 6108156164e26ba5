"""Task records by name: a JSON-lines file, a folder, drawn scenes, a `datasets` table on disk or on the Hub.

A source is a name or a mapping, as a recipe writes it:

    {name: user/dataset, split: train, weight: 2, columns: {question: query, answers: labels}, task: vqa}
"""

import csv
import dataclasses
import itertools
import math
import os
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..image_loading import MAX_PIXELS
from ..scenes.scenes import Scenes
from .dataset_tables import (
    ImageOfRow,
    ImagesOfRows,
    holds_images,
    load_table,
    parquet_table,
    undecoded,
    undecoded_inside,
)
from .endless_records import StreamedRows, rows_of_dataset
from .json_lines import PlacedRows, json_lines, parse_json, read_json, text_lines
from .photo_annotations import SOURCES, records_from_annotations, split_by_photo
from .published_formats import converter_of, placed_records
from .record_images import path_inside
from .task_record import TASKS, TaskRecordError, check_task_record
from .task_record_files import ONE_IMAGE, TaskRecords, opened_record

SCENES = "scenes"
FIRST_CHECKED = 16  # records of a stream that are looked at before anything else happens
_LISTS = ("answers", "captions")
_KINDS = "give a file, a folder, a data set on the Hub or 'scenes'"
FILE_KINDS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
METADATA_KINDS = ("jsonl", "csv", "parquet")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclasses.dataclass(frozen=True)
class RecordSource:
    """
    One source of task records.

    Attributes:
        name (`str`): a file of JSON lines, JSON, CSV, TSV or Parquet; a folder with `train.jsonl` and
            `validation.jsonl`, with images and their `metadata.jsonl` or `.csv` (the ImageFolder form of `datasets`),
            with annotated photos, or with a data set that `datasets` saved or can read; a data set on the Hub; or
            `scenes`. Rows that hold `conversations` (LLaVA) or `messages` (chat) are taken apart into questions.
        weight (`float`, *optional*): its share in a mixture, relative to the others; by default its number of records.
        split (`str`, *optional*): which part of it.
        columns (`Mapping[str, str]`, *optional*): field of the record → name of the column that holds it.
        task (`str`, *optional*): of all records, where no column says it.
        format (`str`, *optional*): a published form that its rows have, see `published_formats`.
        config (`str`, *optional*): of a data set on the Hub with several.
        image_folder (`str`, *optional*): what image paths are relative to and must lie in; by default that of the file.
        scenes (`Mapping`, *optional*): settings of drawn scenes.
        max_pixels (`int`, *optional*, 50 million where nobody says): larger images are refused.
        strict (`bool`, *optional*): whether an empty text ends in an error, in place of costing its record.
    """

    name: str
    weight: float | None = None
    split: str | None = None
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    task: str | None = None
    format: str | None = None
    config: str | None = None
    image_folder: str | None = None
    scenes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    max_pixels: int | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"name={self.name!r} is no source: {_KINDS}.")
        weight = self.weight
        if weight is not None and (
            isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf
        ):
            raise ValueError(
                f"weight={weight!r} of {self.name!r} must be a number above 0; leave the source out for none."
            )
        if not isinstance(self.columns, Mapping) or not all(isinstance(c, str) for c in self.columns.values()):
            raise ValueError(
                f"columns={self.columns!r} of {self.name!r} must say for each field which column holds it: "
                "{question: query}."
            )
        if self.task is not None and self.task not in TASKS:
            raise ValueError(f"task={self.task!r} of {self.name!r} is not known: write {', '.join(TASKS)}.")
        if self.format is not None:
            converter_of(self.format)
        pixels = self.max_pixels
        if pixels is not None and (isinstance(pixels, bool) or not isinstance(pixels, int) or pixels < 1):
            raise ValueError(f"max_pixels={pixels!r} of {self.name!r} must be a whole number of at least 1.")
        if not isinstance(self.strict, bool):
            raise ValueError(f"strict={self.strict!r} of {self.name!r} must be true or false.")


def parse_source(entry: Any) -> RecordSource:
    """A source as a recipe writes it: a name, or a mapping of [`RecordSource`]'s fields.

    Raises:
        ValueError: neither, an unknown field, or a bad value.
    """
    if isinstance(entry, RecordSource):
        return entry
    if isinstance(entry, str):
        return RecordSource(entry)
    if not isinstance(entry, Mapping):
        raise ValueError(
            f"source {entry!r} is neither a name nor a mapping such as {{name: records.jsonl, weight: 2}}."
        )
    known = [field.name for field in dataclasses.fields(RecordSource)]
    for field in entry:
        if field not in known:
            near = get_close_matches(str(field), known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"source field {field!r} is not known: use {', '.join(known)}.{hint}")
    if "name" not in entry:
        raise ValueError(f"source {dict(entry)!r} has no name: {_KINDS}.")
    return RecordSource(**{name: value for name, value in entry.items() if value is not None})


def open_records(source: RecordSource, split: str = "train", seed: int = 0, several_images: bool = False) -> Any:
    """A map-style data set of the source's records, images opened when they are asked for.

    Args:
        split (`str`, *optional*, defaults to `"train"`): where the source names none itself.
        seed (`int`, *optional*, defaults to 0): of drawn scenes and of the split of annotated photos.
        several_images (`bool`, *optional*, defaults to `False`): whether a record may have a list of images.

    Raises:
        FileNotFoundError, ValueError: there is no such source, or a record is wrong.
    """
    split = source.split or split
    if source.name == SCENES:
        return _scenes(source, split, seed)
    path = Path(source.name)
    if path.is_dir() and any((path / name).is_file() for name in SOURCES.values()) and (path / "images").is_dir():
        parts = split_by_photo(records_from_annotations(path, seed=seed), seed=seed)
        if split not in parts:
            raise ValueError(f"split={split!r} is none of {source.name!r}: annotated photos have {', '.join(parts)}.")
        places = [record["metadata"]["annotation"] for record in parts[split]]
        return TaskRecords(parts[split], path.name, places=places, **_limits(source))
    file = _file_of(source, split)
    if file is not None and file.suffix != ".parquet":
        return _file_records(source, file, several_images)
    table = undecoded(load_table(source.name, source.config, split)) if file is None else parquet_table(file)
    return _table_records(source, table, several_images)


def _file_records(source: RecordSource, file: Path, several_images: bool) -> TaskRecords:
    """Checked records of a file whose rows are text: JSON lines, JSON, CSV or TSV."""
    numbered = list(_numbered_rows(file))
    if not numbered:
        raise TaskRecordError(file.name, "(all)", "the file holds no record; write one JSON object a line.")
    folder: Any = source.image_folder or file.parent
    rows: Any = [_renamed(row, source, file) for _, row in numbered]
    form = source.format or _form_of(rows[0])
    if form is not None:
        placed = PlacedRows(rows, [place for place, _ in numbered])
        pairs = list(placed_records(form, placed, folder, strict=source.strict))
        places, rows, folder = [place for place, _ in pairs], [record for _, record in pairs], None
    else:
        places = [place for place, _ in numbered]
    return TaskRecords(rows, file.name, folder, places=places, several_images=several_images, **_limits(source))


def _limits(source: RecordSource) -> dict[str, Any]:
    return {"strict": source.strict, "max_pixels": source.max_pixels or MAX_PIXELS}


def _numbered_rows(file: Path) -> Iterator[tuple[str, Any]]:
    """(place, row) of a file: `train.jsonl line 3`, or of one JSON document `train.json entry 3`."""
    if file.suffix in (".csv", ".tsv"):
        yield from _csv_rows(file)
        return
    if file.suffix == ".json":
        start = next((line for _, line in text_lines(file)), "")
        if start.lstrip().startswith("["):
            entries = enumerate(read_json(file), start=1)
            yield from ((f"{file.name} entry {number}", row) for number, row in entries)
            return
    yield from ((f"{file.name} line {number}", row) for number, row in json_lines(file))


def _csv_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a table whose first line names the columns. Lists are cells of JSON; an empty cell is an absent field."""
    with open(file, encoding="utf-8-sig", newline="") as text:
        reader = csv.DictReader(text, delimiter="\t" if file.suffix == ".tsv" else ",")
        try:
            for row in reader:
                where = f"{file.name} line {reader.line_num}"
                if None in row:
                    raise TaskRecordError(
                        where, "(all)", f"{len(row[None])} cells too many; put texts with commas in quotes."
                    )
                yield where, {name: _cell(name, value, where) for name, value in row.items() if value}
        except UnicodeDecodeError as error:
            problem = f"not text in UTF-8 ({error.reason}); save the table in UTF-8."
            raise TaskRecordError(file.name, "(all)", problem) from None
        except csv.Error as error:
            raise TaskRecordError(f"{file.name} line {reader.line_num}", "(all)", f"not CSV ({error}).") from None


def _cell(name: str, value: str, where: str) -> Any:
    return parse_json(value, f"{where}, column {name!r}") if value.lstrip().startswith(("[", "{")) else value


def _form_of(row: Any) -> str | None:
    """The published form of rows that are no task records but tell their form by a field."""
    if isinstance(row, Mapping) and "task" not in row and ("conversations" in row or "messages" in row):
        return "conversations"
    return None


def published_rows(name: str, split: str, config: str | None = None) -> PlacedRows:
    """Rows of a data set on disk or of the Hub, images undecoded, as converters of published forms take them.

    Raises:
        ValueError: there is no such data set, or no such split of it.
    """
    folder = _image_folder(RecordSource(name))
    table = undecoded(load_table(name, config, split))

    def rows() -> Iterator[dict[str, Any]]:
        for row in table:
            for value in row.values():
                if isinstance(value, Mapping) and value.keys() == {"bytes", "path"}:
                    undecoded_inside(value, folder)
            yield row

    return PlacedRows(rows(), (f"{name} row {number}" for number in itertools.count()))


def stream_records(source: RecordSource, split: str = "train", seed: int = 0) -> StreamedRows:
    """The source for [`EndlessRecords`]: read row by row, images not opened; the first records are checked now.

    Raises:
        FileNotFoundError, ValueError: there is no such source, it holds nothing, or a first record is wrong.
    """
    split = source.split or split
    path = Path(source.name)
    if source.name == SCENES or (path.is_dir() and (path / "images").is_dir()):
        return rows_of_dataset(source.name, open_records(source, split, seed))
    if source.format:
        raise ValueError(
            f"format={source.format!r} of {source.name!r} cannot be streamed, for its records may need several rows: "
            "convert it first (poise data convert), or set streaming to false."
        )
    file = _file_of(source, split)
    if file is not None and (file.suffix not in (".jsonl", ".json") or not _is_task_records(file, source)):
        return rows_of_dataset(source.name, open_records(source, split, seed))
    if file is not None:
        folder = Path(source.image_folder or file.parent)
        stream = StreamedRows(file.name, lambda: text_lines(file), lambda raw: _line_record(raw, file, folder, source))
    else:
        stream = _table_stream(source, split)
    count = 0
    for count, raw in zip(range(1, FIRST_CHECKED + 1), stream.rows(), strict=False):  # noqa: B007
        opened_record(stream.record(raw), source.max_pixels or MAX_PIXELS)
    if not count:
        raise ValueError(f"{source.name!r} holds no record of split {split!r}: check the file or the split.")
    return stream


def _scenes(source: RecordSource, split: str, seed: int) -> Scenes:
    settings = dict(source.scenes)
    size = settings.pop("size", None)
    return Scenes(split, size=size if split == "train" else None, seed=settings.pop("seed", seed), **settings)


def _is_task_records(file: Path, source: RecordSource) -> bool:
    """Whether a file can be read line by line, as told by its first line."""
    number, line = next(text_lines(file), (0, ""))
    return not line.lstrip().startswith("[") and (
        not number or _form_of(_renamed(parse_json(line, f"{file.name} line {number}"), source, file)) is None
    )


def _file_of(source: RecordSource, split: str) -> Path | None:
    """The file that a source names: by itself, as a folder with one for each split, or as the metadata of images."""
    path = Path(source.name)
    if path.is_dir():
        metadata = (folder / f"metadata.{kind}" for folder in (path / split, path) for kind in METADATA_KINDS)
        file = next((file for file in (path / f"{split}.jsonl", *metadata) if file.is_file()), None)
        if file is not None:
            return file
        if (path / "train.jsonl").is_file():
            raise FileNotFoundError(f"{str(path)!r} holds no {split}.jsonl: write that file, or name another split.")
        return None
    looks_like_a_file = path.suffix in FILE_KINDS or source.name.startswith((".", "/", "~"))
    if path.is_file() or looks_like_a_file or not _HUB_NAME.fullmatch(source.name):
        if "://" in source.name:
            raise ValueError(f"data={source.name!r} is an address: download it and name the file.")
        if not path.is_file():
            raise FileNotFoundError(f"data={source.name!r}: there is no such file of task records; check the path.")
        return path
    return None


def _line_record(raw: tuple[int, str], file: Path, folder: Path, source: RecordSource) -> dict[str, Any]:
    number, line = raw
    where = f"{file.name} line {number}"
    record = check_task_record(_renamed(parse_json(line, where), source, file), where, f"{file.stem}-{number}")
    if record["image"] is None and "bbox" in record:
        raise TaskRecordError(where, "image", "null, but a box lies in an image; name the file.")
    _join(record, folder, where)
    return record


def _join(record: dict[str, Any], folder: Path, where: str) -> None:
    """The image's path from here, which must not leave the folder."""
    if isinstance(record["image"], list):
        raise TaskRecordError(where, "image", f"a list of {len(record['image'])} images; {ONE_IMAGE}")
    if isinstance(record["image"], str):
        try:
            record["image"] = os.fspath(path_inside(folder, record["image"]))
        except ValueError as error:
            raise TaskRecordError(where, "image", str(error)) from None


def _renamed(row: Any, source: RecordSource, file: Path | None = None) -> Any:
    """A row with the fields of a task record, out of the columns that the source, or the metadata of images, names."""
    if not isinstance(row, Mapping):
        return row
    renamed = dict(row)
    if file is not None and file.stem == "metadata" and "file_name" in row:
        renamed.setdefault("image", renamed.pop("file_name"))
        if source.task is None and "task" not in row and isinstance(row.get("text"), str):
            renamed.update(task="caption", captions=[renamed.pop("text")])
    for field, column in source.columns.items():
        if column not in row:
            raise ValueError(
                f"columns: {source.name!r} has no column {column!r} for {field!r}: it has {', '.join(map(str, row))}."
            )
        renamed[field] = row[column]
    if source.task is not None:
        renamed["task"] = source.task
    for field in _LISTS:
        if isinstance(renamed.get(field), str):
            renamed[field] = [renamed[field]]
    return renamed


def _image_folder(source: RecordSource) -> Path:
    """Where images that a table names as files may lie."""
    path = Path(source.name)
    return Path(source.image_folder or (path.parent if path.is_file() else path if path.is_dir() else "."))


def _table_records(source: RecordSource, table: Any, several_images: bool) -> TaskRecords:
    """Checked records of a table whose images stay in it, undecoded, until they are asked for."""
    column = source.columns.get("image", "image")
    inside = holds_images(table, column)
    light, own = table.remove_columns(column) if inside else table, _image_folder(source)
    rows: Any = light
    if inside:
        rows = ({**row, column: ImageOfRow(table, column, n, own)} for n, row in enumerate(light))
    form = source.format or (None if source.task or not len(light) else _form_of(light[0]))
    if form:
        numbered = PlacedRows(rows, (f"{source.name} row {number}" for number in range(len(table))))
        named_from = source.image_folder or (own if Path(source.name).exists() else None)
        pairs = list(placed_records(form, numbered, named_from, strict=source.strict))
        places, records = [place for place, _ in pairs], [record for _, record in pairs]
    else:
        places, records = None, [_with_listed_images(_renamed(row, source), source) for row in rows]
    numbers = [record["image"].number for record in records] if inside else None
    for record in records if inside else ():
        record["image"] = None
    images = None if numbers is None else ImagesOfRows(table, column, numbers, own)
    folder = None if form else source.image_folder or "."  # converted records name files as found from here
    return TaskRecords(
        records, source.name, folder, places=places, image_rows=images, several_images=several_images, **_limits(source)
    )


def _with_listed_images(record: dict[str, Any], source: RecordSource) -> dict[str, Any]:
    """A record whose column of lists of images holds undecoded ones."""
    images = record.get("image")
    if not isinstance(images, list) or not any(isinstance(image, Mapping) for image in images):
        return record
    return {**record, "image": [undecoded_inside(image, _image_folder(source)) for image in images]}


def _table_stream(source: RecordSource, split: str) -> StreamedRows:
    import datasets

    table = load_table(source.name, source.config, split, streaming=True)
    column = source.columns.get("image", "image")
    if holds_images(table, column):
        table = table.cast_column(column, datasets.Image(decode=False))

    def check(raw: tuple[int, dict[str, Any]]) -> dict[str, Any]:
        number, row = raw
        row = _renamed(row, source)
        stem = re.sub(r"\W+", "-", source.name).strip("-")
        where = f"{source.name} row {number}"
        if _form_of(row):
            problem = "a conversation, whose questions are records of their own; set streaming to false."
            raise TaskRecordError(where, "(all)", problem)
        named_in_row = isinstance(row.get("image"), str)
        if isinstance(row.get("image"), Mapping):
            row = {**row, "image": undecoded_inside(row["image"], _image_folder(source))}
        record = check_task_record(row, where, f"{stem}-{number}")
        if named_in_row:
            _join(record, Path(source.image_folder or "."), where)
        return record

    return StreamedRows(source.name, lambda: enumerate(table), check)
