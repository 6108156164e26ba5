"""One object of a picture, where it is, and the three ways to ask whether a model sees it: let it describe the picture
(generative), ask whether the object is there (polling), ask about it (VQA). Neo et al., arXiv 2410.07149, ablation.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from poise.evaluation.metrics.pope import YES, read_yes_no
from poise.evaluation.metrics.vqa_answers import vqa_accuracy
from poise.processing.prompts import Prompts
from poise.processing.scenes_text import CAPTION_QUESTION, question_text

FORMS = ("generative", "polling", "vqa")


@dataclass(frozen=True)
class ObjectProbe:
    """
    Attributes:
        id, image, tags: of the record.
        box: [x, y, w, h] of the object in pixels of the stored picture.
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
