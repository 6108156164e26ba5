"""Images as a tag encoder learns from them, which are never opened: tags with scores, and captions; which captions are
an image's positive; and batches in which the captions of one image are negatives of the others.

Dynamic LION takes as positive the caption closest to the centroid of the image's captions; averaging them all is the
other reading of "the centroid caption" and keeps what only one annotator wrote.
"""

import logging
import os
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...processing.records.json_lines import json_lines
from ...processing.records.photo_annotations import records_from_annotations, simulated_tags
from ...processing.records.task_record_files import load_task_records
from ...processing.scenes.scenes import Scenes
from ...processing.tag_tokens import tokenize_tags
from ...processing.tags import Tag, check_tags

logger = logging.getLogger(__name__)
SCENES = "scenes"


@dataclass(frozen=True)
class TaggedCaptions:
    """What is known of one image: its `name`, `tags` (best first) and `captions`."""

    name: str
    tags: list[Tag]
    captions: list[str]


def load_tagged_captions(
    source: str,
    seed: int,
    split: str = "train",
    vocabulary: str | None = None,
    invented: float = 0.5,
    scenes: Mapping[str, Any] | None = None,
) -> list[TaggedCaptions]:
    """
    Images of a source that have both tags and captions; the others are left out, which is logged.

    Args:
        source (`str`): `"scenes"`; a JSON-lines file of task records; or a folder of annotated photos, whose labels
            become tags with simulated scores.
        seed (`int`): of drawn scenes and simulated scores.
        split (`str`, *optional*, defaults to `"train"`): of scenes.
        vocabulary (`str`, *optional*): a file with a tag a line, beside the photos' annotations or anywhere, from which
            false tags are drawn; by default the labels of other photos are.
        invented (`float`, *optional*, defaults to 0.5): false tags per true one.
        scenes (*optional*): further settings of [`Scenes`].

    Raises:
        ValueError: a bad record, or nothing with both tags and captions.
        FileNotFoundError: no such source or vocabulary.
    """
    if source == SCENES:
        settings = dict(scenes or {})
        drawn = Scenes(split, size=settings.pop("size", None), seed=seed, tasks=("caption",), **settings)
        records: Iterable[Mapping[str, Any]] = drawn.records(range(len(drawn)), images=False)
        images = _by_image({**record, "image": None} for record in records)
    elif Path(source).is_dir():
        images = _photos(Path(source), seed, vocabulary, invented)
    else:
        images = _by_image(load_task_records(source, check_images=False).records)
    usable = [image for image in images if image.tags and image.captions]
    if not usable:
        raise ValueError(f"data {source!r} holds no image with both tags and captions: nothing to learn from")
    if len(usable) < len(images):
        logger.info("%d of %d images have both tags and captions; the others are left out", len(usable), len(images))
    return usable


def split_held_out(
    images: Sequence[TaggedCaptions], share: float, seed: int
) -> tuple[list[TaggedCaptions], list[TaggedCaptions]]:
    """Training images and held-out ones, drawn by `seed`.

    Raises:
        ValueError: fewer than two images on either side, which leaves no negative.
    """
    order = list(range(len(images)))
    random.Random(f"held out {seed}").shuffle(order)
    count = round(len(images) * share)
    if count < 2 or len(images) - count < 2:
        raise ValueError(
            f"data.held_out={share} of {len(images)} images leaves {count} held out and {len(images) - count} to train "
            "on: each side needs two or more"
        )
    return [images[i] for i in sorted(order[count:])], [images[i] for i in sorted(order[:count])]


def _by_image(records: Iterable[Mapping[str, Any]]) -> list[TaggedCaptions]:
    """Records of one image together: its captions in order, the first tags that any of them brings."""
    found: dict[str, TaggedCaptions] = {}
    for record in records:
        name = record["image"] if isinstance(record["image"], str) else str(record["id"])
        image = found.setdefault(name, TaggedCaptions(name, [], []))
        image.captions.extend(text for text in record.get("captions") or [] if text not in image.captions)
        if not image.tags:
            image.tags.extend(check_tags(record.get("tags")))
    return list(found.values())


def _photos(folder: Path, seed: int, vocabulary: str | None, invented: float) -> list[TaggedCaptions]:
    images = _by_image(records_from_annotations(folder, tasks=("caption",), seed=seed, invented=invented))
    if vocabulary is None:
        return images
    names = _vocabulary(folder, vocabulary)
    labels: dict[str, list[str]] = {row["image"]: row["labels"] for _, row in json_lines(folder / "tags.jsonl")}
    retagged = []
    for image in images:
        photo = os.path.basename(image.name)
        tags = check_tags(simulated_tags(labels.get(photo, []), names, photo, seed, invented))
        retagged.append(TaggedCaptions(photo, tags, image.captions))
    return retagged


def _vocabulary(folder: Path, vocabulary: str) -> list[str]:
    path = folder / vocabulary if (folder / vocabulary).is_file() else Path(vocabulary)
    if not path.is_file():
        raise FileNotFoundError(f"data.vocabulary={vocabulary!r}: there is no such file, nor one in {folder}")
    return [name.strip() for name in path.read_text(encoding="utf-8").splitlines() if name.strip()]


POSITIVES = ("centroid", "mean")
# Sentences to their embeddings (M, D), of any length.
SentenceEmbedding = Callable[[Sequence[str]], np.ndarray]


def centroid_caption(embeddings: np.ndarray) -> int:
    """Row of the caption with the greatest cosine to the mean of all; of equals (two captions always are) the first.

    embeddings (`np.ndarray` (C, D)): one row per caption of an image.
    """
    rows = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True).clip(1e-12)  # (C, D)
    cosines = rows @ rows.mean(axis=0)  # (C,)
    return int(np.argmax(cosines >= cosines.max() - 1e-5))  # rounding must not choose: float32 errs by 1e-7


def positive_captions(captions: Sequence[Sequence[str]], kind: str, embed: SentenceEmbedding) -> list[list[str]]:
    """Per image the captions that make its positive: the centroid one, or all of them (`kind="mean"`).

    Args:
        captions: per image its captions, at least one.
        kind (`str`): one of `POSITIVES`.
        embed: sentence embeddings; called once with every caption, and only where they are needed.

    Raises:
        ValueError: an unknown kind, or an image without a caption.
    """
    if kind not in POSITIVES:
        raise ValueError(f"positive={kind!r} is not known: choose one of {', '.join(POSITIVES)}")
    for place, texts in enumerate(captions):
        if not texts:
            raise ValueError(f"captions[{place}] is empty: leave the image out")
    if kind == "mean":
        return [list(texts) for texts in captions]
    embeddings = embed([text for texts in captions for text in texts])  # (M, D)
    bounds = np.cumsum([0, *map(len, captions)])
    return [
        [texts[centroid_caption(embeddings[start:end])]]
        for texts, start, end in zip(captions, bounds[:-1], bounds[1:], strict=True)
    ]


class TripletCollator:
    """
    Makes a batch of `TaggedCaptions` whose `captions` are those of the positive.

    Args:
        tokenizer: of the encoder, fast; it reads tags and captions.
        with_scores (`bool`): whether scores are written after the tags' names (the encoding `"text"`).

    Returns a dict of tensors: `tag_input_ids`, `tag_attention_mask`, `tag_scores` (B, L), `caption_input_ids`,
    `caption_attention_mask` (M, L') and `caption_owner` (M,), the row of the image that a caption describes.
    """

    def __init__(self, tokenizer: Any, with_scores: bool):
        self.tokenizer, self.with_scores = tokenizer, with_scores

    def __call__(self, images: Sequence[TaggedCaptions]) -> dict[str, torch.Tensor]:
        texts = [text for image in images for text in image.captions]
        owner = [row for row, image in enumerate(images) for _ in image.captions]
        captions = self.captions(texts)
        return {
            **self.tags(images),
            "caption_input_ids": captions["input_ids"],  # (M, L')
            "caption_attention_mask": captions["attention_mask"],  # (M, L')
            "caption_owner": torch.tensor(owner),  # (M,)
        }

    def tags(self, images: Sequence[TaggedCaptions]) -> dict[str, torch.Tensor]:
        """The tags alone, three times (B, L)."""
        arrays = tokenize_tags([image.tags for image in images], self.tokenizer, self.with_scores)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def captions(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """The captions alone, twice (M, L')."""
        batch = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
