"""Task records from JSON lines or `datasets` rows, opened when they are asked for, and written back."""

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageFile

from ..grounding_text import check_box
from ..image_loading import MAX_PIXELS, image_size, open_image
from ..prompts import images_of
from .json_lines import json_lines
from .record_data import UNREAD, RecordDataset
from .record_images import StoredImages, path_inside
from .task_record import EmptyTextError, TaskRecordError, check_task_record

logger = logging.getLogger(__name__)

ONE_IMAGE = (
    "only poise evaluate, and poise sft without feature_cache, packing, tagger, streaming and align_pictures, read "
    "several: leave such records out."
)


class TaskRecords(RecordDataset):
    """Map-style data set of checked task records; an image is decoded when its record is read.

    Everything that can be told without decoding is checked at once: the schema, that each image file exists and its
    header is readable and not too large, and that boxes lie inside. Read one as `records[i]`; the result is a dict as
    [`TaskRecord`] whose image is an RGB PIL image (or `None`).

    Args:
        rows (`Sequence[Mapping]`): the records, such as a list or a `datasets.Dataset`.
        source (`str`, *optional*, defaults to `"records"`): names the rows in errors.
        image_folder (`str`, *optional*): what image paths are relative to, and must lie in. Without it they are
            relative to the working directory, and may lie anywhere.
        max_pixels (`int`, *optional*, defaults to 50 megapixels): larger images are refused.
        check_images (`bool`, *optional*, defaults to `True`): whether to read the header of every image file now.
        places (`Sequence[str]`, *optional*): where each row stands, for errors, such as `"train.jsonl line 3"`.
        strict (`bool`, *optional*, defaults to `False`): whether an empty text ends in an error. By default its record
            is left out, and one line of the log counts them.
        several_images (`bool`, *optional*, defaults to `False`): whether a record may have a list of images, which
            training and evaluation read, and what measures or tags single images does not.
        image_rows (`Sequence[Mapping]`, *optional*): where each row's image is read as `["image"]` when it is asked
            for, in place of the rows themselves.

    Attributes:
        lengths (`list[int]` or `None`): the rows' column `length`, where they have one: tokens of each record's row.

    Raises:
        TaskRecordError: a record breaks the schema, or its image is missing, unreadable, empty or too large; the
            message names source, line and field. Damage that only decoding shows is raised when the record is read.

    Examples:
        >>> rows = [{"image": "scene.png", "task": "vqa", "question": "what color ?", "answers": ["yellow"]}]
        >>> TaskRecords(rows, "mine")[0]["image"].size
        (48, 48)
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        source: str = "records",
        image_folder: str | os.PathLike | None = None,
        max_pixels: int = MAX_PIXELS,
        check_images: bool = True,
        places: Sequence[str] | None = None,
        image_rows: Any = None,
        strict: bool = False,
        several_images: bool = False,
    ):
        self.source, self.image_folder = source, Path(image_folder or ".")
        self.stays_inside = image_folder is not None
        self.max_pixels, self.places = max_pixels, places
        # A row of a `datasets` table decodes its image when it is touched: only the other columns are checked now.
        table: Any = rows
        decodes = type((getattr(table, "features", None) or {}).get("image")).__name__ == "Image"
        self.image_rows = table if decodes else image_rows
        lengths: list[Any] = []
        self.records: list[dict[str, Any]] = []
        self.row_numbers: list[int] = []  # of the records that are kept
        self.left_out: EmptyTextError | None = None  # why the first record that is not kept was left out
        sizes: dict[str, tuple[int, int]] = {}
        first_of_id: dict[str, int] = {}
        number = -1
        for number, row in enumerate(table.remove_columns("image") if decodes else table):
            row = {**row, "image": None} if decodes else row
            where = self._where(number)
            try:
                record = check_task_record(row, where, default_id=f"{Path(source).stem}-{number}")
            except EmptyTextError as error:
                if strict:
                    raise
                self.left_out = self.left_out or error
                continue
            if isinstance(record["image"], list) and not several_images:
                problem = f"a list of {len(record['image'])} images; {ONE_IMAGE}"
                raise TaskRecordError(where, "image", problem)
            earlier = first_of_id.setdefault(record["id"], number)
            if earlier != number:
                problem = f"{record['id']!r} is the id of {self._where(earlier)}, too; give each record its own."
                raise TaskRecordError(where, "id", problem)
            if check_images:
                self._check_images(record, number, sizes)
            if record["image"] is None and self.image_rows is None and "bbox" in record:
                raise TaskRecordError(where, "image", "null, but a box lies in an image; name the file.")
            self.records.append(record)
            self.row_numbers.append(number)
            lengths.append(row.get("length"))
        if self.left_out is not None:
            if not self.records:
                raise self.left_out
            count = number + 1 - len(self.records)
            logger.warning("%d of %d records are left out for an empty text, the first is %s",
                           count, number + 1, self.left_out)  # fmt: skip
        self.lengths = lengths if lengths and all(isinstance(length, int) for length in lengths) else None

    def __len__(self) -> int:
        return len(self.records)

    def rows(self, indices: Sequence[int], images: bool = True) -> list[dict[str, Any]]:
        return [self._with_image(index) if images else self._unopened(index) for index in indices]

    def identity(self) -> Any:
        facts = [self._facts(record) for record in self.records]
        if self.image_rows is None:
            return facts
        # What `datasets` says about a table that holds images, and which of its rows are meant.
        table = getattr(self.image_rows, "table", self.image_rows)
        return [facts, [table._fingerprint, getattr(self.image_rows, "numbers", None)]]

    def _facts(self, record: Mapping[str, Any]) -> list[Any]:
        image = record["image"]
        if not isinstance(image, str):
            return [record["id"], image]
        facts = (self.image_folder / image).stat()
        return [record["id"], image, facts.st_size, facts.st_mtime_ns]

    def _with_image(self, index: int) -> dict[str, Any]:
        record = dict(self.records[index])
        row = self.row_numbers[index]
        image = record["image"] if self.image_rows is None else self.image_rows[row]["image"]
        if isinstance(image, list):
            record["image"] = [self._opened(one, record, row) for one in image]
        elif image is not None:
            record["image"] = self._opened(image, record, row)
        return record

    def _unopened(self, index: int) -> dict[str, Any]:
        record = dict(self.records[index])
        if self.image_rows is not None:
            record["image"] = UNREAD
        elif isinstance(record["image"], str):
            record["image"] = os.fspath(self.image_folder / record["image"])
        return record

    def _where(self, row: int) -> str:
        return f"{self.source} row {row}" if self.places is None else self.places[row]

    def _path(self, image: str) -> Path | str:
        return path_inside(self.image_folder, image) if self.stays_inside else self.image_folder / image

    def _check_images(self, record: dict[str, Any], number: int, sizes: dict[str, tuple[int, int]]) -> None:
        for image, _ in images_of(record):
            if not isinstance(image, str):
                continue
            try:
                if image not in sizes:
                    sizes[image] = image_size(self._path(image), self.max_pixels)
            except (OSError, ValueError) as error:
                raise TaskRecordError(self._where(number), "image", str(error)) from None
            self._check_box(record, number, sizes[image])

    def _check_box(self, record: dict[str, Any], number: int, size: tuple[int, int]) -> None:
        if "bbox" in record:
            try:
                check_box(record["bbox"], *size)
            except ValueError as error:
                raise TaskRecordError(self._where(number), "bbox", str(error)) from None

    def _opened(self, image: str | Image.Image, record: dict[str, Any], number: int) -> Image.Image:
        try:
            source = self._path(image) if isinstance(image, str) and self.image_rows is None else image
            # A box is in pixels of the stored image, so that one must not be turned.
            opened = open_image(source, self.max_pixels, turn_upright="bbox" not in record)
        except (OSError, ValueError) as error:
            raise TaskRecordError(self._where(number), "image", str(error)) from None
        self._check_box(record, number, opened.size)
        return opened


def opened_record(record: Mapping[str, Any], max_pixels: int = MAX_PIXELS) -> Mapping[str, Any]:
    """A record whose image is decoded: itself, or a copy where the image still was a file or undecoded bytes.

    Streams hand images on unopened, so that places which are passed over cost nothing.

    Raises:
        TaskRecordError: the image is missing or damaged, or the box reaches outside of it.
    """
    image = record["image"]
    if isinstance(image, list):
        return {**record, "image": [opened_record({**record, "image": one}, max_pixels)["image"] for one in image]}
    if not isinstance(image, str | ImageFile.ImageFile):
        return record
    try:
        opened = open_image(image, max_pixels, turn_upright="bbox" not in record)
        if "bbox" in record:
            check_box(record["bbox"], *opened.size)
    except (OSError, ValueError) as error:
        raise TaskRecordError(f"record {record.get('id')!r}", "image", str(error)) from None
    return {**record, "image": opened}


def load_task_records(
    path: str | os.PathLike,
    image_folder: str | os.PathLike | None = None,
    max_pixels: int = MAX_PIXELS,
    check_images: bool = True,
    strict: bool = False,
    several_images: bool = False,
) -> TaskRecords:
    """Loads task records from JSON lines, one object a line; empty lines are skipped.

    Args:
        path: the file.
        image_folder (*optional*): what image paths are relative to, and must lie in; the file's folder by default.
        max_pixels (`int`, *optional*, defaults to 50 megapixels): larger images are refused.
        check_images (`bool`, *optional*, defaults to `True`): whether to read the header of every image now.
        strict (`bool`, *optional*, defaults to `False`): whether an empty text ends in an error, in place of costing
            its record.
        several_images (`bool`, *optional*, defaults to `False`): whether a record may have a list of images.

    Raises:
        FileNotFoundError: there is no such file.
        TaskRecordError: a line is no JSON object, or as [`TaskRecords`]; the message names file, line and field.

    Examples:
        >>> records = load_task_records("records.jsonl")
        >>> records[0]["image"].mode
        'RGB'
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path={str(path)!r}: there is no such file of task records; check the path.")
    numbered = list(json_lines(path))
    if not numbered:
        raise TaskRecordError(path.name, "(all)", "the file holds no record; write one JSON object a line.")
    places = [f"{path.name} line {number}" for number, _ in numbered]
    rows = [row for _, row in numbered]
    return TaskRecords(
        rows, path.name, image_folder or path.parent, max_pixels, check_images, places,
        strict=strict, several_images=several_images,
    )  # fmt: skip


def write_task_records(records: Iterable[Mapping[str, Any]], path: str | os.PathLike) -> int:
    """Writes task records as JSON lines that `load_task_records` reads; returns how many.

    Beside `train.jsonl` stands `train_images` where it is needed: PIL images as PNG, or byte for byte where they were
    not decoded yet; and links to the folders of image files that lie elsewhere, for those are not copied. Paths in the
    records given are relative to the working directory, as everywhere. All of it appears only when it is complete.

    Raises:
        OSError: the file could not be written.
        TaskRecordError: a record breaks the schema; nothing is written then.

    Examples:
        >>> write_task_records(Scenes("test", size=3), "drawn/test.jsonl")
        3
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    images = StoredImages(path.with_name(path.stem + "_images"))
    count = 0
    ids: set[str] = set()
    try:
        with open(unfinished, "w", encoding="utf-8") as file:
            for count, record in enumerate(records, start=1):  # noqa: B007
                where = f"record {count - 1}"
                checked = check_task_record(record, where, default_id=f"{path.stem}-{count - 1}")
                if checked["id"] in ids:
                    problem = f"{checked['id']!r} is the id of an earlier record, too; give each record its own."
                    raise TaskRecordError(where, "id", problem)
                ids.add(checked["id"])
                if isinstance(checked["image"], list):
                    named = ((one, f"{checked['id']}-{place}") for place, one in enumerate(checked["image"]))
                    checked["image"] = [images.store(one, name) for one, name in named]
                elif checked["image"] is not None:
                    checked["image"] = images.store(checked["image"], checked["id"])
                checked.setdefault("tags", [])
                file.write(json.dumps(checked, ensure_ascii=False) + "\n")
        images.finish()
        os.replace(unfinished, path)
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error  # a full disk does not say whose
    finally:
        unfinished.unlink(missing_ok=True)
        images.clear()
    return count
