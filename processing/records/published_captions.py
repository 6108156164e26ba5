"""Captions as they are published: COCO (original JSON, Karpathy's split, Hub tables) and TextCaps (original, Hub)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .record_images import coco_file_name

Rows = Sequence[Mapping[str, Any]]


def coco_captions(document: Any, split: str | None = None) -> Iterator[dict[str, Any]]:
    """One record an image from COCO captions.

    Args:
        document: what was published: the annotation file (`images` and `annotations`, one caption each); Karpathy's
            `dataset_coco.json` (`images` with `sentences` and `split`); or rows of a table on the Hub, with the
            captions in `answer`, `sentences`, `captions` or `caption`.
        split (`str`, *optional*): only records of this split, where the document knows splits (Karpathy's).
    """
    if isinstance(document, Mapping) and "annotations" in document:
        yield from _annotation_file(document)
    elif isinstance(document, Mapping):
        yield from (_karpathy(row) for row in document["images"] if split in (None, row["split"]))
    else:
        yield from _one_an_image(document, split)


def textcaps(document: Any, split: str | None = None) -> Iterator[dict[str, Any]]:
    """One record an image from TextCaps.

    Args:
        document: the published file (`data`, one entry a caption, each with all the image's captions in
            `reference_strs`), or rows of a table on the Hub (one row an image).
        split (`str`, *optional*): only entries whose `set_name` this is.
    """
    rows = document["data"] if isinstance(document, Mapping) else document
    seen: dict[str, dict[str, Any]] = {}
    for row in rows:
        if split is not None and row.get("set_name") not in (None, split):
            continue
        image_id = str(row["image_id"])
        captions = _texts(row.get("reference_strs") or row.get("caption_str"))
        if image_id not in seen:
            file = row.get("image", f"{image_id}.jpg")
            seen[image_id] = _record(f"textcaps-{image_id}", file, captions, "textcaps", image_id)
        else:
            known = seen[image_id]["captions"]
            known += [caption for caption in captions if caption not in known]
    yield from seen.values()


def _annotation_file(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    captions: dict[Any, list[str]] = {}
    for annotation in document["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"].strip())
    for image in document["images"]:
        if image["id"] in captions:
            number = image["id"]
            yield _record(f"coco-{number}", image["file_name"], captions[number], "coco_captions", str(number))


def _karpathy(row: Mapping[str, Any]) -> dict[str, Any]:
    captions = [sentence["raw"].strip() for sentence in row["sentences"]]
    return _record(f"coco-{row['cocoid']}", row["filename"], captions, "coco_captions", str(row["cocoid"]))


def _one_an_image(rows: Rows, split: str | None) -> Iterator[dict[str, Any]]:
    """Rows of a table; those that hold one caption each are gathered by image if they follow one another."""
    held: dict[str, Any] | None = None
    for row in rows:
        if split is not None and row.get("split") not in (None, split):
            continue
        found = next((row[name] for name in ("answer", "sentences", "captions", "caption") if row.get(name)), None)
        image_id = str(row.get("cocoid") or row.get("image_id") or row.get("id") or row.get("imgid"))
        file = row.get("image") or row.get("file_name") or row.get("filename") or coco_file_name(image_id, "")
        if held is not None and held["metadata"]["image_id"] == image_id:
            held["captions"] += [text for text in _texts(found) if text not in held["captions"]]
            continue
        if held is not None:
            yield held
        held = _record(f"coco-{image_id}", file, _texts(found), "coco_captions", image_id)
    if held is not None:
        yield held


def _texts(found: Any) -> list[str]:
    """Captions as a list: from a text, texts, or sentences with their `raw` text."""
    if isinstance(found, str | Mapping):
        found = [found]
    return [(text["raw"] if isinstance(text, Mapping) else text).strip() for text in found or []]


def _record(record_id: str, image: Any, captions: list[str], source: str, image_id: str) -> dict[str, Any]:
    metadata = {"source": source, "image_id": image_id}
    return {"id": record_id, "image": image, "task": "caption", "captions": captions, "metadata": metadata}
