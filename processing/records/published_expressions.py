"""Referring expressions as they are published: RefCOCO, RefCOCO+ and RefCOCOg, original files and Hub tables."""

import json
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .record_images import coco_file_name


class PlainUnpickler(pickle.Unpickler):
    """Reads pickles of plain containers, numbers and texts, as the `refs(...).p` files are.

    A pickle can name any function and have it called while it is read; this one refuses every name.
    """

    def find_class(self, module: str, name: str) -> Any:
        raise ValueError(f"the pickle names {module}.{name}, which could run code: only plain data is read.")


def refcoco(document: Any, split: str | None = None) -> Iterator[dict[str, Any]]:
    """One record an expression from RefCOCO, RefCOCO+ or RefCOCOg; boxes are [x, y, w, h] in pixels.

    Args:
        document: the list of references (`refs(unc).p`) and the instances file (`instances.json`), in any order, as a
            list of the two; or rows of a table on the Hub. Two forms of those are known: `answer` (expressions) with
            `bbox` as [x, y, w, h], and `sentences` with the original annotation in `raw_anns` (where `bbox` holds
            corners and is not read).
        split (`str`, *optional*): only references of this split (train, val, testA, testB, test), where they name one.

    Raises:
        ValueError: references without the instances file, or a reference whose box is not there.
    """
    if isinstance(document, Sequence) and len(document) == 2 and any(map(_is_instances, document)):
        instances = next(part for part in document if _is_instances(part))
        references = next(part for part in document if not _is_instances(part))
        yield from _files(references, instances, split)
        return
    for row in document:
        if split is not None and row.get("split") not in (None, split):
            continue
        yield from _table_row(row)


def _is_instances(part: Any) -> bool:
    return isinstance(part, Mapping) and "annotations" in part and "images" in part


def _files(references: Any, instances: Mapping[str, Any], split: str | None) -> Iterator[dict[str, Any]]:
    boxes = {annotation["id"]: annotation["bbox"] for annotation in instances["annotations"]}
    files = {image["id"]: image["file_name"] for image in instances["images"]}
    for reference in references:
        if split is not None and reference["split"] != split:
            continue
        if reference["ann_id"] not in boxes:
            raise ValueError(
                f"reference {reference['ref_id']} names the annotation {reference['ann_id']}, which the instances file "
                "lacks: give the instances.json that came with these references."
            )
        image_id = reference["image_id"]
        image = files.get(image_id) or coco_file_name(image_id, "train2014")
        yield from _records(reference, image, image_id, boxes[reference["ann_id"]])


def _table_row(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    if row.get("raw_anns"):
        annotation = row["raw_anns"]
        annotation = json.loads(annotation) if isinstance(annotation, str) else annotation
        image = row.get("image") or row["image_path"]
        yield from _records(row, image, row["image_id"], annotation["bbox"])
        return
    if row.get("ann_id") is None and row.get("answer") is None:
        raise ValueError("references without boxes: give the instances.json beside them.")
    image = row.get("image") or _image_name(row["file_name"])
    image_id = row.get("image_id") or _image_name(row.get("file_name") or str(image))
    yield from _records(row, image, image_id, row["bbox"])


def _records(row: Mapping[str, Any], image: Any, image_id: Any, box: Sequence[float]) -> Iterator[dict[str, Any]]:
    said = row.get("sentences") or row.get("answer") or []
    texts = [sentence["sent"] if isinstance(sentence, Mapping) else sentence for sentence in said]
    reference = row.get("ref_id", row.get("question_id"))
    for number, text in enumerate(texts):
        yield {
            "id": f"ref-{reference}-{number}",
            "image": image,
            "task": "grounding",
            "question": text,
            "bbox": [float(side) for side in box],
            "metadata": {"source": "refcoco", "image_id": str(image_id), "ref_id": reference},
        }


def _image_name(file_name: str) -> str:
    """`COCO_train2014_000000581857_16.jpg` names an annotation of the image `COCO_train2014_000000581857.jpg`."""
    return re.sub(r"(\d{12})_\d+(\.\w+)$", r"\1\2", file_name)
