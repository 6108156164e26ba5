"""Tags from the tagging models of transformers: zero-shot classifiers, detectors, image classifiers, Florence-2.

tagger = ModelTagger.from_pretrained("facebook/detr-resnet-50")
tagger.tag_records([{"image": "photo.jpg"}])  # [[Tag("dog", 0.98), Tag("ball", 0.71)]]
"""

import inspect
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from ..taggers import TAGGER_FILE, DualEncoderTagger, ZeroShotTagger, check_limits, tags_of_records
from ..tags import Tag

ZERO_SHOT_CLASSIFIER, ZERO_SHOT_DETECTOR = "zero-shot classifier", "zero-shot detector"
DETECTOR, CLASSIFIER, FLORENCE = "detector", "image classifier", "Florence-2"
NEEDS_VOCABULARY = (ZERO_SHOT_CLASSIFIER, ZERO_SHOT_DETECTOR)
# The object categories of COCO (arXiv 1405.0312), a vocabulary for photos where no better one is known.
_COCO = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, parking
meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag, tie,
suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis
racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog,
pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard, cell
phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush
"""
COCO_OBJECTS = tuple(" ".join(name.split()) for name in _COCO.split(","))
# Words that stand in captions and answers but name nothing in an image.
_NO_TAGS = frozenset(
    """a an the this that these those and or but of in on at to for with by from up down over under near next
    beside behind front is are was were be been being has have had do does did can could will would it its
    he she they his her their there here what which who where when how many much some any no not yes one
    two three very several other another each as into out off around along while together top side left
    right standing sitting holding wearing looking walking""".split()
)


class Found(NamedTuple):
    """What a model finds in one image: a name, its score, and the box [x, y, w, h] in pixels, where it gives one."""

    name: str
    score: float
    box: list[float] | None = None


def kind_of(config: Any) -> str:
    """What kind of tagging model a configuration belongs to.

    Raises:
        ValueError: none of them.
    """
    from transformers.models.auto import modeling_auto as auto

    tables = {
        ZERO_SHOT_DETECTOR: auto.MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING_NAMES,
        DETECTOR: auto.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES,
        ZERO_SHOT_CLASSIFIER: auto.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        CLASSIFIER: auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    }
    if config.model_type == "florence2":
        return FLORENCE
    architecture = next(iter(config.architectures or ()), None)
    for kind, table in tables.items():  # a tower may serve several tasks: the class that was saved decides
        names = {name for entry in table.values() for name in (entry if isinstance(entry, tuple) else (entry,))}
        if architecture in names:
            return kind
    for kind, table in tables.items():
        if architecture is None and config.model_type in table:
            return kind
    raise ValueError(
        f"{architecture or config.model_type} is no tagger: name a zero-shot classifier (CLIP, SigLIP), a detector "
        "(DETR, RT-DETR), an open-vocabulary detector (OWLv2, Grounding DINO), an image classifier, Florence-2 or a "
        "dual encoder"
    )


class ModelTagger:
    """
    Tags of images by a model of any of these kinds; a name that is found several times keeps its best score.

    Args:
        kind (`str`): see [`kind_of`].
        find (`Callable`): images (list of PIL images) → for each a list of [`Found`].
        threshold (`float`, *optional*, defaults to 0.1): names with a lower score are not given.
        max_tags (`int`, *optional*, defaults to 16): at most, the best first.
    """

    def __init__(self, kind: str, find: Callable[[list[Any]], list[list[Found]]], threshold: float = 0.1,
                 max_tags: int = 16):  # fmt: skip
        check_limits(threshold, max_tags)
        self.kind, self.find, self.threshold, self.max_tags = kind, find, threshold, max_tags

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike,
        vocabulary: Sequence[str] | None = None,
        threshold: float = 0.1,
        max_tags: int = 16,
        device: str = "cpu",
        trust_remote_code: bool = False,
    ) -> "ModelTagger":
        """
        Args:
            name (`str`): a folder or a Hub id.
            vocabulary (`Sequence[str]`, *optional*): names that zero-shot models look for; the others know their own.

        Raises:
            ValueError: the model is no tagger, needs a vocabulary, or has one of its own.
        """
        from transformers import AutoConfig

        check_limits(threshold, max_tags)  # before a model is loaded
        if (Path(name) / TAGGER_FILE).is_file():
            return cls(
                ZERO_SHOT_CLASSIFIER, _of_zero_shot(_dual_encoder(name, vocabulary, device)), threshold, max_tags
            )
        code = {"trust_remote_code": True} if trust_remote_code else {}
        try:
            config = AutoConfig.from_pretrained(name, **code)
        except (OSError, ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"tagger={str(name)!r} could not be loaded: name a folder with a model, or a repository of the Hub "
                f"within reach ({reason})"
            ) from error
        kind = kind_of(config)
        if kind in NEEDS_VOCABULARY and not vocabulary:
            raise ValueError(f"tagger={str(name)!r} is a {kind}: give the vocabulary that it looks for.")
        if kind not in NEEDS_VOCABULARY and vocabulary:
            raise ValueError(f"tagger={str(name)!r} is a {kind} with names of its own: leave the vocabulary out.")
        finder = {
            ZERO_SHOT_CLASSIFIER: _zero_shot_classifier,
            ZERO_SHOT_DETECTOR: _zero_shot_detector,
            DETECTOR: _detector,
            CLASSIFIER: _classifier,
            FLORENCE: _florence,
        }[kind]
        names = list(dict.fromkeys(" ".join(word.split()) for word in vocabulary or ()))
        return cls(kind, finder(str(name), names, device, code), threshold, max_tags)

    def found(self, images: Sequence[Image.Image]) -> list[list[Found]]:
        """What is in each image, best first, each name once. Runs the model on all of them as one batch."""
        best = []
        for own in self.find(list(images)) if len(images) else []:
            by_name: dict[str, Found] = {}
            for item in sorted(own, key=lambda item: -item.score):
                by_name.setdefault(item.name, item)
            best.append([item for item in by_name.values() if item.score >= self.threshold][: self.max_tags])
        return best

    def tag_records(self, records: Sequence[Mapping[str, Any]]) -> list[list[Tag]]:
        """Tags of task records; a record without an image has none."""

        def tag(images: list[Any]) -> list[list[Tag]]:
            return [[Tag(item.name, item.score) for item in own] for own in self.found(images)]

        return tags_of_records(tag, records)


def words_of(records: Iterable[Mapping[str, Any]], most: int = 1000) -> list[str]:
    """The names that records use themselves: their tags, then words of captions and answers, the commonest first."""
    tags: Counter[str] = Counter()
    words: Counter[str] = Counter()
    for record in records:
        tags.update(name for name, _ in record.get("tags") or [])
        for text in [*(record.get("captions") or []), *(record.get("answers") or [])]:
            # Once a text, in its order: a set has another order in every process.
            words.update(
                word for word in dict.fromkeys(re.findall(r"[^\W\d_]{3,}", text.lower())) if word not in _NO_TAGS
            )
    # A word of a single record is most often a slip or a name.
    names = [*(name for name, _ in tags.most_common()), *(word for word, count in words.most_common() if count > 1)]
    return list(dict.fromkeys(names))[:most]


def _dual_encoder(name: str | os.PathLike, vocabulary: Sequence[str] | None, device: str) -> ZeroShotTagger:
    tagger = DualEncoderTagger.from_pretrained(name, **({"vocabulary": list(vocabulary)} if vocabulary else {}))
    tagger.model.to(device)
    return tagger


def _of_zero_shot(tagger: ZeroShotTagger) -> Callable[[list[Any]], list[list[Found]]]:
    def find(images: list[Any]) -> list[list[Found]]:
        scores = tagger.scores_of(tagger.similarities(images)).cpu()  # (N, C)
        return [[Found(*pair) for pair in zip(tagger.vocabulary, row, strict=True)] for row in scores.tolist()]

    return find


def _zero_shot_classifier(name: str, vocabulary: list[str], device: str, code: dict[str, Any]) -> Any:
    from transformers import AutoModelForZeroShotImageClassification, AutoProcessor

    model = AutoModelForZeroShotImageClassification.from_pretrained(name, **code).to(device)
    for needed in ("get_image_features", "get_text_features"):
        if not hasattr(model, needed):
            raise ValueError(
                f"tagger={name!r} is a {type(model).__name__}, which has no {needed}: name a CLIP or SigLIP."
            )
    return _of_zero_shot(ZeroShotTagger(model, AutoProcessor.from_pretrained(name, **code), vocabulary))


def _detector(name: str, vocabulary: list[str], device: str, code: dict[str, Any]) -> Any:
    from transformers import pipeline

    ask = pipeline("object-detection", model=name, device=device, **code)
    return lambda images: [[_boxed(item) for item in own] for own in ask(images, threshold=0.0)]


def _zero_shot_detector(name: str, vocabulary: list[str], device: str, code: dict[str, Any]) -> Any:
    """All names at once; transformers' pipeline encodes the image again for each of them."""
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

    model = AutoModelForZeroShotObjectDetection.from_pretrained(name, **code).to(device).eval()
    processor = AutoProcessor.from_pretrained(name, **code)

    @torch.no_grad()
    def find(images: list[Any]) -> list[list[Found]]:
        inputs = processor(text=[vocabulary] * len(images), images=images, return_tensors="pt", padding=True).to(device)
        sizes = [(image.height, image.width) for image in images]
        # Grounding DINO reads its labels off the tokens, and may find a part of a name; OWL is told the names.
        parameters = inspect.signature(processor.post_process_grounded_object_detection).parameters
        told = {"input_ids": inputs["input_ids"]} if "input_ids" in parameters else {}
        read = processor.post_process_grounded_object_detection(
            model(**inputs), threshold=0.0, target_sizes=sizes, text_labels=[vocabulary] * len(images), **told
        )
        found = []
        for own in read:
            names = [_name_of(label, vocabulary) for label in own["text_labels"]]
            items = zip(names, own["scores"].tolist(), own["boxes"].tolist(), strict=True)
            found.append([Found(name, score, [x, y, x2 - x, y2 - y]) for name, score, (x, y, x2, y2) in items if name])
        return found

    return find


def _name_of(label: str, vocabulary: list[str]) -> str | None:
    """The name that a label means: itself, or the first name that holds all of its words; `None` for no name."""
    words = set(label.lower().split())
    exact = [name for name in vocabulary if name.lower() == label.lower()]
    return next(iter([*exact, *(name for name in vocabulary if words and words <= set(name.lower().split()))]), None)


def _boxed(item: Mapping[str, Any]) -> Found:
    box = item["box"]
    sides = [box["xmin"], box["ymin"], box["xmax"] - box["xmin"], box["ymax"] - box["ymin"]]
    return Found(_tidy(item["label"]), float(item["score"]), [float(side) for side in sides])


def _classifier(name: str, vocabulary: list[str], device: str, code: dict[str, Any]) -> Any:
    from transformers import pipeline

    ask = pipeline("image-classification", model=name, device=device, **code)
    count = ask.model.config.num_labels

    def find(images: list[Any]) -> list[list[Found]]:
        return [[Found(_tidy(item["label"]), float(item["score"])) for item in own] for own in ask(images, top_k=count)]

    return find


def _florence(name: str, vocabulary: list[str], device: str, code: dict[str, Any]) -> Any:
    """Florence-2 writes its objects as text (arXiv 2311.06242, section 3); its words have no scores, so each gets 1."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(name, **code).to(device).eval()
    processor = AutoProcessor.from_pretrained(name, **code)

    @torch.no_grad()
    def find(images: list[Any]) -> list[list[Found]]:
        task = "<OD>"
        inputs = processor(text=[task] * len(images), images=images, return_tensors="pt", padding=True).to(device)
        written = processor.batch_decode(model.generate(**inputs, max_new_tokens=512), skip_special_tokens=False)
        found = []
        for text, image in zip(written, images, strict=True):
            read = processor.post_process_generation(text, task=task, image_size=image.size)[task]
            objects = zip(read["labels"], read["bboxes"], strict=True)
            found.append([Found(_tidy(label), 1.0, [x, y, x2 - x, y2 - y]) for label, (x, y, x2, y2) in objects])
        return found

    return find


def _tidy(label: str) -> str:
    """A label as a tag: ImageNet's lists of synonyms (`tench, Tinca tinca`) keep the first."""
    return " ".join(str(label).split(",")[0].replace("_", " ").split()) or "unknown"
