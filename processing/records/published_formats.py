"""Published data sets by name: which converter reads them, and the way from their files or tables to task records."""

import itertools
import json
import logging
import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from ..grounding_text import clipped_box
from ..image_loading import image_size
from .json_lines import PlacedRows, RowError, entries_of, json_lines, place_in, read_json, text_lines
from .published_captions import coco_captions, textcaps
from .published_expressions import PlainUnpickler, refcoco
from .published_questions import aokvqa, conversations, hallusionbench, mmstar, okvqa, pope
from .record_images import ImageFolder
from .task_record import NEEDED_FIELDS, EmptyTextError, TaskRecordError, check_task_record

logger = logging.getLogger(__name__)

# A converter takes the document (or the rows of a table) and a split, and yields records; their images are file names,
# or whatever the rows hold as `image`.
Converter = Callable[[Any, str | None], Iterator[dict[str, Any]]]
FORMATS: dict[str, Converter] = {
    "coco-captions": coco_captions,
    "textcaps": textcaps,
    "okvqa": okvqa,
    "vqav2": okvqa,
    "aokvqa": aokvqa,
    "refcoco": refcoco,
    "refcoco+": refcoco,
    "refcocog": refcoco,
    "pope": pope,
    "hallusionbench": hallusionbench,
    "mmstar": mmstar,
    "conversations": conversations,
}


def converter_of(name: str) -> Converter:
    """The converter of a format.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in FORMATS:
        near = get_close_matches(name, FORMATS, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"format={name!r} is not known: choose one of {', '.join(FORMATS)}.{hint}")
    return FORMATS[name]


def read_document(path: str | os.PathLike) -> Any:
    """What a published file holds: JSON, JSON lines (whatever its ending says), or a pickle of plain data (`.p`).

    Lists of rows come as [`PlacedRows`], which know where each row stands.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is neither, or a pickle that would run code.
    """
    path = Path(path)
    if not path.is_file():
        kind = "is a folder; name the file" if path.is_dir() else "there is no such file; check the path"
        raise FileNotFoundError(f"source={str(path)!r}: {kind}.")
    if path.suffix in (".p", ".pkl", ".pickle"):
        with open(path, "rb") as file:
            try:
                return entries_of(PlainUnpickler(file, encoding="latin-1").load(), path.name)  # written by Python 2
            except (EOFError, ValueError, IndexError, pickle.UnpicklingError) as error:
                raise ValueError(f"source={str(path)!r} is no pickle of plain data: {error}") from None
    if not _is_json_lines(path):
        return entries_of(read_json(path), path.name)
    numbered = list(json_lines(path))
    return PlacedRows([row for _, row in numbered], [f"{path.name} line {number}" for number, _ in numbered])


def _is_json_lines(path: Path) -> bool:
    """Whether a file's first line is a whole JSON object, and not the only one."""
    starts = [line for _, line in itertools.islice(text_lines(path), 2)]
    try:
        return len(starts) > (path.suffix != ".jsonl") and isinstance(json.loads(starts[0]), dict)
    except (json.JSONDecodeError, RecursionError):
        return False


def read_published(paths: Sequence[str | os.PathLike]) -> Any:
    """The documents of one data set: a single one as it is, rows one after the other, anything else as a list.

    Rows that come from a file of POPE learn their category from the file's name.
    """
    documents = [read_document(path) for path in paths]
    for path, document in zip(paths, documents, strict=True):
        category = Path(path).stem.rpartition("_")[2]
        if category in ("random", "popular", "adversarial") and isinstance(document, PlacedRows):
            document.rows = [{"category": category, **row} for row in document]
    if len(documents) == 1:
        return documents[0]
    if all(isinstance(document, PlacedRows) for document in documents):
        rows, places = ([one for document in documents for one in getattr(document, name)]
                        for name in ("rows", "places"))  # fmt: skip
        return PlacedRows(rows, places)
    return documents


def converted_records(
    name: str,
    document: Any,
    images: str | os.PathLike | None = None,
    split: str | None = None,
    skip_missing: bool = False,
    strict: bool = False,
) -> Iterator[dict[str, Any]]:
    """As [`placed_records`], the records alone."""
    return (record for _, record in placed_records(name, document, images, split, skip_missing, strict))


def placed_records(
    name: str,
    document: Any,
    images: str | os.PathLike | None = None,
    split: str | None = None,
    skip_missing: bool = False,
    strict: bool = False,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, task record) of a published document, with images found, boxes inside of them, and all fields checked.

    Records without anything to answer with (withheld test answers) are left out, which is logged with their number, and
    so are those with an empty text.

    Args:
        name (`str`): one of `FORMATS`.
        document: as the converter takes it, such as from [`read_published`].
        images (*optional*): the folder of the images, where annotations name files.
        split (`str`, *optional*): only this split, where the document holds several.
        skip_missing (`bool`, *optional*, defaults to `False`): leave out records whose image is not in the folder.
        strict (`bool`, *optional*, defaults to `False`): whether an empty text ends in an error.

    Raises:
        FileNotFoundError: an image is not in the folder.
        ValueError: an unknown format, a document of another form, or nothing left to write.
        TaskRecordError: a row lacks a field or a record breaks the schema; the message names file, line and field.
    """
    convert = converter_of(name)
    folder = None if images is None else ImageFolder(images)
    left_out: Counter[str] = Counter()
    kept = 0
    seen: Counter[str] = Counter()
    records = convert(document, split)
    while (record := _next(records, document, name)) is not None:
        place = place_in(document) or f"record {record['id']!r}"
        if any(not record.get(field) for field in NEEDED_FIELDS[record["task"]]):
            left_out["without anything to answer with"] += 1
            continue
        try:
            check_task_record({**record, "image": None}, place)
        except EmptyTextError:
            if strict:
                raise
            left_out["with an empty text"] += 1
            continue
        named = record["image"] if isinstance(record["image"], list) else [record["image"]]
        found = [_found_image(one, folder, place) for one in named]
        lacking = [one for one, image in zip(named, found, strict=True) if one is not None and image is None]
        if lacking:
            if not skip_missing:
                raise FileNotFoundError(
                    f"{place}, field 'image': images={str(images)!r} holds no {lacking[0]!r} (record "
                    f"{record['id']!r}): name the folder with all images, or leave such records "
                    "out with skip_missing (--skip-missing)."
                )
            left_out["without their image"] += 1
            continue
        image: Any = found if len(found) > 1 else found[0]
        record["image"] = image
        if "bbox" in record and image is not None:
            try:
                size = image_size(image) if isinstance(image, str) else image.size
                record["bbox"] = clipped_box(record["bbox"], *size)
            except ValueError as error:
                raise TaskRecordError(place, "bbox", str(error)) from None
        seen[record["id"]] += 1
        if seen[record["id"]] > 1:
            record["id"] += f"-{seen[record['id']]}"
        kept += 1
        yield place, record
    for reason, count in left_out.items():
        logger.info("%d records %s were left out", count, reason)
    if not kept:
        which = "" if split is None else f" of split {split!r}"
        raise ValueError(f"format={name!r}: the document holds no record{which}; check the split and the file.")


def _next(records: Iterator[dict[str, Any]], document: Any, name: str) -> dict[str, Any] | None:
    """The converter's next record, `None` at the end; what it could not read is told with the row's place."""
    remedy = f"as `{name}` is published; give the file as it was downloaded"
    try:
        return next(records, None)
    except TaskRecordError:
        raise
    except (RowError, LookupError, TypeError, AttributeError, ValueError, SyntaxError) as error:
        place, where = place_in(document), f"format={name!r}"
        if isinstance(error, RowError):
            raise TaskRecordError(place or where, error.field, error.problem) from None
        if isinstance(error, KeyError):
            problem = f"missing, and the document not {remedy}."
            raise TaskRecordError(place or where, str(error.args[0]), problem) from error
        if place is None and isinstance(error, ValueError):  # of the whole document, in the converter's own words
            raise
        problem = f"not {remedy} ({type(error).__name__}: {error})."
        raise TaskRecordError(place or where, "(all)", problem) from error


def undecoded_image(stored: Mapping[str, Any]) -> Image.Image | str:
    """What a `datasets` column of undecoded images holds, `{"bytes", "path"}`, as a PIL image that is not decoded yet.

    Raises:
        ValueError: neither bytes nor a path are there, or the bytes are no image.
    """
    if stored.get("bytes") is None:
        if not stored.get("path"):
            raise ValueError(f"image={dict(stored)!r} holds neither bytes nor a path: give one of them.")
        return stored["path"]
    try:
        return Image.open(BytesIO(stored["bytes"]))
    except OSError as error:
        raise ValueError(f"image is not readable ({error}): check the rows of the table.") from None


def _found_image(image: Any, folder: ImageFolder | None, place: str) -> Any:
    if isinstance(image, Mapping):
        return undecoded_image(image)
    if isinstance(image, int | float):
        raise TaskRecordError(place, "image", f"{image!r} is a {type(image).__name__}; give a file.")
    if not isinstance(image, str):
        return image
    if folder is None:
        raise ValueError(
            f"images is not given, but {place} names the file {image!r}: name the folder of the images (--images)."
        )
    try:
        return folder.find(image)
    except ValueError as error:
        raise TaskRecordError(place, "image", str(error)) from None
