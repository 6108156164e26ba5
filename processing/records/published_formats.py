"""Published data sets by name: which converter reads them, and the way from their files or tables to task records."""

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from ..grounding_text import clipped_box
from ..image_loading import image_size
from .published_captions import coco_captions, textcaps
from .published_expressions import PlainUnpickler, refcoco
from .published_questions import aokvqa, conversations, hallusionbench, mmstar, okvqa, pope
from .record_images import ImageFolder
from .task_record import NEEDED_FIELDS

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

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is neither, or a pickle that would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"source={str(path)!r}: there is no such file; check the path.")
    if path.suffix in (".p", ".pkl", ".pickle"):
        with open(path, "rb") as file:
            try:
                return PlainUnpickler(file, encoding="latin-1").load()  # written by Python 2
            except (EOFError, ValueError, IndexError) as error:
                raise ValueError(f"source={str(path)!r} is no pickle of plain data: {error}") from None
    text = path.read_text(encoding="utf-8")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        lines = [line for line in text.splitlines() if line.strip()]
        if error.msg != "Extra data" or len(lines) < 2:
            raise ValueError(f"source={str(path)!r} is not JSON: {error}; download it again.") from None
    try:
        return [json.loads(line) for line in lines]
    except json.JSONDecodeError as error:
        raise ValueError(f"source={str(path)!r} is neither JSON nor JSON lines: {error}") from None


def read_published(paths: Sequence[str | os.PathLike]) -> Any:
    """The documents of one data set: a single one as it is, lists one after the other, anything else as a list.

    A list that comes from a file of POPE learns its category from the file's name.
    """
    documents = [read_document(path) for path in paths]
    for path, document in zip(paths, documents, strict=True):
        category = Path(path).stem.rpartition("_")[2]
        if category in ("random", "popular", "adversarial") and isinstance(document, list):
            for row in document:
                row.setdefault("category", category)
    if len(documents) == 1:
        return documents[0]
    if all(isinstance(document, list) for document in documents):
        return [row for document in documents for row in document]
    return documents


def converted_records(
    name: str,
    document: Any,
    images: str | os.PathLike | None = None,
    split: str | None = None,
    skip_missing: bool = False,
) -> Iterator[dict[str, Any]]:
    """Task records of a published document, with images found and boxes inside of them.

    Records without anything to answer with (withheld test answers) are left out, which is logged with their number.

    Args:
        name (`str`): one of `FORMATS`.
        document: as the converter takes it, such as from [`read_published`].
        images (*optional*): the folder of the images, where annotations name files.
        split (`str`, *optional*): only this split, where the document holds several.
        skip_missing (`bool`, *optional*, defaults to `False`): leave out records whose image is not in the folder.

    Raises:
        FileNotFoundError: an image is not in the folder.
        ValueError: an unknown format, a document of another form, or nothing left to write.
    """
    convert = converter_of(name)
    folder = None if images is None else ImageFolder(images)
    left_out: Counter[str] = Counter()
    kept = 0
    seen: Counter[str] = Counter()
    try:
        for record in convert(document, split):
            if any(not record.get(field) for field in NEEDED_FIELDS[record["task"]]):
                left_out["without anything to answer with"] += 1
                continue
            named = record["image"]
            image = _found_image(named, folder, record["id"])
            if named is not None and (image is None or (isinstance(image, list) and None in image)):
                if not skip_missing:
                    raise FileNotFoundError(
                        f"images={str(images)!r} holds no {record['image']!r} (record {record['id']!r}): name the "
                        "folder with all images, or leave such records out with skip_missing (--skip-missing)."
                    )
                left_out["without their image"] += 1
                continue
            record["image"] = image
            if "bbox" in record and image is not None:
                size = image_size(image) if isinstance(image, str) else image.size
                record["bbox"] = clipped_box(record["bbox"], *size)
            seen[record["id"]] += 1
            if seen[record["id"]] > 1:
                record["id"] += f"-{seen[record['id']]}"
            kept += 1
            yield record
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"format={name!r}: the document is not of the published form ({type(error).__name__}: {error}); give the "
            f"file as it was downloaded, and see `{name}` in the documentation."
        ) from error
    for reason, count in left_out.items():
        logger.info("%d records %s were left out", count, reason)
    if not kept:
        which = "" if split is None else f" of split {split!r}"
        raise ValueError(f"format={name!r}: the document holds no record{which}; check the split and the file.")


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


def _found_image(image: Any, folder: ImageFolder | None, record_id: str) -> Any:
    if isinstance(image, list):
        found = [_found_image(one, folder, record_id) for one in image]
        return found if len(found) > 1 else found[0]
    if isinstance(image, Mapping):
        return undecoded_image(image)
    if not isinstance(image, str):
        return image
    if folder is None:
        raise ValueError(
            f"images is not given, but record {record_id!r} names the file {image!r}: name the folder of the images "
            "(--images)."
        )
    return folder.find(image)
