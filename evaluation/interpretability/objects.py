"""One object of an image, where it is, and the three ways to ask whether a model sees it: let it describe the image
(generative), ask whether the object is there (polling), ask about it (VQA). Neo et al., arXiv 2410.07149, ablation.

Box → patches: which image tokens cover an object, after everything that the image processor does to the image.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...processing.grounding_text import check_box
from ...processing.prompts import Prompts
from ...processing.records.record_data import ChosenRecords, rows_of
from ...processing.scenes.text import CAPTION_QUESTION, question_text
from ..metrics.pope import YES, read_yes_no
from ..metrics.vqa_answers import vqa_accuracy
from ..probing.parts import ModelParts
from ..probing.prompt_batch import PromptBatch
from ..probing.prompt_reading import read_prompts
from ..probing.token_grids import ImageGrids

FORMS = ("generative", "polling", "vqa")


@dataclass(frozen=True)
class ObjectProbe:
    """
    Attributes:
        id, image, tags: of the record.
        box: [x, y, w, h] of the object in pixels of the stored image.
        name: what a description must mention; empty where only a question about the object is known.
        questions: form → what to ask.
        answers: what counts as right in the form "vqa".
    """

    id: str
    image: Image.Image
    box: tuple[float, ...]
    name: str = ""
    tags: Sequence[Any] = ()
    questions: Mapping[str, str] = field(default_factory=dict)
    answers: Sequence[str] = ()

    def is_identified(self, form: str, answer: str) -> bool:
        """Whether an answer shows that the model sees the object."""
        if form == "generative":
            return mention(self.name, answer) is not None
        if form == "polling":
            return read_yes_no(answer) == YES
        return vqa_accuracy(answer, self.answers, always_normalize=True) >= 0.5


def mention(name: str, text: str) -> tuple[int, int] | None:
    """Where `text` first mentions `name` (whole words, any case, a plural counts): start and end, or `None`."""
    words = r"\s+".join(re.escape(word) for word in name.lower().split())
    found = re.search(rf"(?<!\w){words}(?:e?s)?(?!\w)", text.lower()) if words else None
    return found.span() if found else None


def object_probe(record: Mapping[str, Any], prompts: Prompts | None = None) -> ObjectProbe | None:
    """
    The probe of a task record, or `None` where its object cannot be told apart or is not known.

    Of a scene: an object whose shape occurs once, the question's target first; the VQA form asks for its colour. Of any
    other record: its `bbox`; the name is `metadata["object"]` or the expression of a grounding record; a vqa record's
    own question is taken to be about the box.

    Raises:
        ValueError: the record has a box but no opened image.
    """
    metadata = record.get("metadata") or {}
    if "scene" in metadata and metadata.get("objects"):
        return _scene_probe(record, metadata)
    if not record.get("bbox"):
        return None
    if not isinstance(record["image"], Image.Image):
        raise ValueError(f"record {record['id']!r} has a bbox but its image is not opened: load it with TaskRecords.")
    name = metadata.get("object") or (record["question"] if record["task"] == "grounding" else "")
    name = re.sub(r"^(the|a|an)\s+", "", name.lower())
    questions = {}
    if name:
        questions["generative"] = (prompts or Prompts()).caption
        questions["polling"] = f"Is there {'an' if name[0] in 'aeiou' else 'a'} {name} in this image?"  # as POPE asks
    if record["task"] == "vqa":
        questions["vqa"] = record["question"]
    return ObjectProbe(
        id=str(record["id"]),
        image=record["image"],
        box=tuple(record["bbox"]),
        name=name,
        tags=record.get("tags") or (),
        questions=questions,
        answers=tuple(record.get("answers") or ()),
    )


def read_probes(
    parts: ModelParts, processor: Any, probes: Sequence[ObjectProbe], form: str, with_tags: bool
) -> PromptBatch:
    """Prompts that ask about each probe's object in one form."""
    return read_prompts(
        parts,
        processor,
        [probe.image for probe in probes],
        [probe.questions[form] for probe in probes],
        [probe.tags if with_tags else [] for probe in probes],
    )


def records_with_objects(records: Any, limit: int) -> tuple[Any, tuple[str, ...]]:
    """
    The first records whose object is known, and the forms of questions that they offer; told without opening images.

    Args:
        records: a map-style data set; of scenes all count as such.
        limit (`int`): how many at most.

    Returns:
        The records, and their forms in the order of `FORMS`. Where no object is known, the first records and no form.
    """
    count = min(limit, len(records))
    first = rows_of(records, range(min(1, count)), images=False)
    if any("scene" in (record.get("metadata") or {}) for record in first):
        return ChosenRecords(records, range(count)), FORMS
    everything = rows_of(records, range(len(records)), images=False)
    boxed = [place for place, record in enumerate(everything) if record.get("bbox")][:limit]
    facts = [everything[place] for place in boxed]
    offered = {"vqa"} if any(record["task"] == "vqa" for record in facts) else set()
    if any(record["task"] == "grounding" or (record.get("metadata") or {}).get("object") for record in facts):
        offered |= {"generative", "polling"}
    return ChosenRecords(records, boxed or range(count)), tuple(form for form in FORMS if form in offered)


def _scene_probe(record: Mapping[str, Any], metadata: Mapping[str, Any]) -> ObjectProbe | None:
    objects = metadata["objects"]
    count = Counter(item["shape"] for item in objects)
    target = metadata.get("target")
    order = [] if target is None else [objects[target]]
    alone = [item for item in [*order, *objects] if count[item["shape"]] == 1]
    if not alone:
        return None
    shape, color = alone[0]["shape"], alone[0]["color"]
    return ObjectProbe(
        id=str(record["id"]),
        image=record["image"],
        box=tuple(alone[0]["bbox"]),
        name=f"{color} {shape}",
        tags=record.get("tags") or (),
        questions={
            "generative": CAPTION_QUESTION,
            "polling": question_text("presence", shape, color),
            "vqa": question_text("color", shape, color),
        },
        answers=(color,),
    )


# Rounding of floating point numbers is not an overlap. In pixels.
SMALLEST_OVERLAP = 1e-6


class NoPatchError(ValueError):
    """A box that maps to no patch."""


class ObjectTokens:
    """The image tokens under a box, in every view of the image; a token counts if any part of the box lies on its part.

    Args:
        image_processor: the model's.
    """

    def __init__(self, image_processor: Any):
        self.grids = ImageGrids(image_processor)

    def __call__(
        self, prompts: PromptBatch, row: int, image: Image.Image, box: Sequence[float], buffer: int = 0
    ) -> torch.Tensor:
        """
        Args:
            prompts: with one image each. row: which of them.
            image: the stored image.
            box: [x, y, w, h] in its pixels.
            buffer (`int`, *optional*, defaults to 0): how many patches around are added, corners included (the vision
                tower mixes an object into its neighbourhood; Neo et al., arXiv 2410.07149, take 1 or 2).

        Returns:
            `torch.Tensor` (T,) of bool.

        Raises:
            NoPatchError: the box lies in a part that the processor crops away.
            ValueError: the box is not inside the image, the buffer is negative, or tokens have no place on the image.
        """
        found = [
            grid.tokens[touched]
            for grid in self.grids(prompts, row, image)
            if (touched := patches_under(grid.region, grid.tokens.shape, image, box, buffer)).any()
        ]
        if not found:
            regions = self.grids.regions(image)
            x1, y1, x2, y2 = (round(edge, 1) for edge in regions[0])
            raise NoPatchError(
                f"bbox={list(box)} maps to no patch: of the {image.width}×{image.height} image the model sees only "
                f"x {x1}–{x2}, y {y1}–{y2}; leave this object out, or use an image processor that does not crop."
            )
        return places_of(prompts, row, np.concatenate(found))

    def or_none(self, prompts: PromptBatch, row: int, image: Image.Image, box: Sequence[float]) -> torch.Tensor | None:
        """As calling it, but `None` for a box that maps to no patch: for data sets, where some always do."""
        try:
            return self(prompts, row, image, box)
        except NoPatchError:
            return None

    def on_image(self, prompts: PromptBatch, images: Sequence[Image.Image]) -> torch.Tensor:
        """Every token that lies on its image, (B, T) bool: class tokens and ends of rows do not."""
        rows = [
            places_of(prompts, row, np.concatenate([grid.tokens.ravel() for grid in self.grids(prompts, row, image)]))
            for row, image in enumerate(images)
        ]
        return torch.stack(rows)


def places_of(prompts: PromptBatch, row: int, tokens: np.ndarray) -> torch.Tensor:
    """Numbers of image tokens of one prompt as places in its sequence, (T,) bool."""
    places = torch.zeros_like(prompts.image[row])
    where = prompts.image[row].nonzero()[:, 0]  # (P,)
    places[where[torch.as_tensor(tokens.ravel(), device=where.device)]] = True
    return places


def patches_under(
    region: tuple[float, float, float, float],
    grid: tuple[int, ...],
    image: Image.Image,
    box: Sequence[float],
    buffer: int = 0,
) -> np.ndarray:
    """
    Patches under a box [x, y, w, h] and `buffer` patches around them, (rows, columns) of bool; none where it lies
    outside of the region.

    Args:
        region: (x1, y1, x2, y2) that the grid of (rows, columns) covers, in pixels of the stored image.

    Raises:
        ValueError: the box is not inside the image, or the buffer is negative.
    """
    if buffer < 0:
        raise ValueError(f"buffer={buffer} must be 0 or more patches.")
    check_box(box, *image.size)
    x, y, w, h = box
    x1, y1, x2, y2 = region
    rows = _touched(y - y1, y + h - y1, (y2 - y1) / grid[0], grid[0])  # (rows,)
    columns = _touched(x - x1, x + w - x1, (x2 - x1) / grid[1], grid[1])  # (columns,)
    if not (rows.any() and columns.any()):
        return np.zeros(grid, dtype=bool)
    return np.outer(_widened(rows, buffer), _widened(columns, buffer))


def _touched(start: float, stop: float, side: float, count: int) -> np.ndarray:
    """Which of `count` intervals of length `side` overlap [start, stop]."""
    edges = np.arange(count + 1) * side
    overlap = np.minimum(edges[1:], stop) - np.maximum(edges[:-1], start)
    return overlap > SMALLEST_OVERLAP


def _widened(touched: np.ndarray, buffer: int) -> np.ndarray:
    near = np.flatnonzero(touched)
    widened = np.zeros_like(touched)
    widened[max(near.min() - buffer, 0) : near.max() + buffer + 1] = True
    return widened
