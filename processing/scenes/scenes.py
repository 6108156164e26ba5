"""`Scenes`: the embedded data set. Coloured shapes on a textured ground, drawn from a seed, no download.

Made so that modality dominance can be measured: shape predicts colour as strongly as `prior_strength` says, in the
split `prior_broken` it never does, tags repeat the image with some errors that follow the prior, and every stream can
be degraded at will. Scene i of (split, seed) is a pure function of i.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image

from ..degradations.degradations import (
    DEGRADATION_STREAMS,
    NEEDS_DONOR,
    NEEDS_FOREIGN_TAGS,
    check_degradation,
    degrade,
    nearest_name,
)
from ..degradations.stateless_random import random_uniforms, stable_hash
from .drawing import draw_images, object_boxes
from .layout import (
    COLORS,
    NUM_CELLS,
    PLACES,
    PRIOR_COLOR_OF_SHAPE,
    QUESTION_TYPES,
    SHAPES,
    SPLITS,
    TASKS,
    SceneLayout,
    draw_layout,
)
from .tags import draw_tags
from .text import (
    CAPTION_QUESTION,
    answer_text,
    captions_text,
    place_phrase,
    prior_answer_text,
    question_text,
    referring_expressions,
    tag_name,
)

#: Raised with every change after which (split, seed, index) is another scene, as a pinned test tells.
GENERATOR_VERSION = "1"
DEFAULT_SIZES = {"train": 20_000, "validation": 1_000, "test": 1_000, "prior_broken": 1_000}
Indices = Sequence[int] | np.ndarray
_BLOCK = 256  # scenes drawn together when iterating: large enough for numpy, small enough for memory


class Scenes(torch.utils.data.Dataset):
    """Map-style data set of task records over drawn scenes; see the module's docstring.

    Args:
        split (`str`, *optional*, defaults to `"train"`): "train", "validation", "test" (one law, different scenes) or
            "prior_broken" (the colour is never the prior's).
        size (`int`, *optional*): number of scenes; by default 20,000 for train and 1,000 for the others.
        seed (`int`, *optional*, defaults to 0): another seed is another data set.
        prior_strength (`float`, *optional*, defaults to 0.9): probability that an object takes its shape's prior colour
            instead of a uniform one. Without meaning in "prior_broken".
        tasks (`Sequence[str]`, *optional*): among "vqa", "caption", "grounding"; drawn evenly.
        question_types (`Sequence[str]`, *optional*): among "color", "shape", "count", "place", "presence"; drawn
            evenly.
        image_degradation, tag_corruption, question_corruption (`str`, *optional*): a degradation of that stream by
            name, see `degradations`.
        severity (`int`, *optional*, defaults to 3): its strength, 1 to 5.
        degradation_seed (`int`, *optional*, defaults to 0): seed of the random degradations.
        tag_miss_rate (`float`, *optional*, defaults to 0.1): probability that an object gets no tag.
        tag_invention_rate (`float`, *optional*, defaults to 0.3): probability, for each of two slots, of a false tag in
            the prior colour of its shape.
        tag_sharpness (`float`, *optional*, defaults to 1.0): how well scores tell true tags from invented ones; 0 not
            at all, 1 Beta(8, 2) against Beta(2, 6).

    Every record holds `id`, `image` (PIL, RGB, 48×48), `task`, `question`, `answers` (vqa), `captions` (always four),
    `bbox` ([x, y, w, h] in pixels, grounding), `tags` ([[name, score], ...], best first) and `metadata`: `objects`
    (dicts with `shape`, `color`, `place`, `cell`, `bbox`, in reading order), `target` (index of the object that is
    asked about, None if none is), `question_type`, `prior_answer` (the prior's answer to a colour or shape question,
    else None), `prior_tags` (false tags that the prior would invent, likeliest first), `misleading_tag` (a tag that
    suggests a wrong answer to this question: the prior's where that is wrong), `scene` (index).

    Raises:
        ValueError: unknown split, task, question type or degradation (the nearest name is suggested), size < 1, rate
            outside [0, 1], severity outside 1–5.
        IndexError: a scene outside [0, size).

    Examples:
        >>> record = Scenes("prior_broken", tasks=("vqa",), question_types=("color",))[0]
        >>> record["question"], record["answers"], record["metadata"]["prior_answer"]
        ('what color is the star ?', ['red'], 'yellow')
    """

    def __init__(
        self,
        split: str = "train",
        size: int | None = None,
        seed: int = 0,
        prior_strength: float = 0.9,
        tasks: Sequence[str] = TASKS,
        question_types: Sequence[str] = QUESTION_TYPES,
        image_degradation: str | None = None,
        tag_corruption: str | None = None,
        question_corruption: str | None = None,
        severity: int = 3,
        degradation_seed: int = 0,
        tag_miss_rate: float = 0.1,
        tag_invention_rate: float = 0.3,
        tag_sharpness: float = 1.0,
    ):
        if split not in SPLITS:
            raise ValueError(f"split={split!r} is no split of Scenes: {nearest_name(split, SPLITS)}")
        size = DEFAULT_SIZES[split] if size is None else size
        if size < 1:
            raise ValueError(f"size={size!r} leaves no scene: use size >= 1")
        for argument, values, known in (("tasks", tasks, TASKS), ("question_types", question_types, QUESTION_TYPES)):
            if isinstance(values, str) or not values:
                raise ValueError(f"{argument}={values!r} is not a list of names: choose among {', '.join(known)}")
            for value in values:
                if value not in known:
                    raise ValueError(f"{argument} holds {value!r}: {nearest_name(value, known)}")
        for argument, rate in (
            ("prior_strength", prior_strength),
            ("tag_miss_rate", tag_miss_rate),
            ("tag_invention_rate", tag_invention_rate),
        ):
            if not 0 <= rate <= 1:
                raise ValueError(f"{argument}={rate!r} is no probability: use a number from 0 to 1")
        if not tag_sharpness >= 0:
            raise ValueError(f"tag_sharpness={tag_sharpness!r} is negative: use 0 (scores say nothing) or more")
        self.degradations = []
        for stream, name in (("image", image_degradation), ("tags", tag_corruption), ("question", question_corruption)):
            if name is not None:
                check_degradation(name, severity, stream)
                self.degradations.append(name)
        self.split, self.size, self.seed, self.prior_strength = split, size, seed, prior_strength
        self.tasks, self.question_types = tuple(tasks), tuple(question_types)
        self.severity, self.degradation_seed = severity, degradation_seed
        self.tag_miss_rate, self.tag_invention_rate, self.tag_sharpness = (
            tag_miss_rate,
            tag_invention_rate,
            tag_sharpness,
        )
        self.key = stable_hash("scenes", split, seed)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Indices) -> list[dict]:
        """Records of many scenes, drawn together; torch's DataLoader calls this for every batch."""
        layout = self.layout(self._checked(indices))
        records = self._records(layout, draw_images(self.key, layout))
        donors = self._donors(layout.indices)
        for name in self.degradations:
            records = [
                degrade(record, name, self.severity, self.degradation_seed, **donor)
                for record, donor in zip(records, donors, strict=True)
            ]
        return records

    def rows(self, indices: Indices, images: bool = True) -> list[dict]:
        """The records; without images `image` is a name of the scene, and where words are sound none is drawn."""
        if images:
            return self.__getitems__(indices)
        sound = all(DEGRADATION_STREAMS[name] == "image" for name in self.degradations)
        records = self.records(indices, images=False) if sound else self.__getitems__(indices)
        name = stable_hash("image", str(self.identity()))
        return [{**record, "image": f"scene {record['metadata']['scene']} of {name}"} for record in records]

    def identity(self) -> dict:
        """What tells these scenes from others."""
        return dict(vars(self))

    def __iter__(self) -> Iterator[dict]:
        for start in range(0, self.size, _BLOCK):
            yield from self.__getitems__(range(start, min(start + _BLOCK, self.size)))

    def _checked(self, indices: Indices) -> np.ndarray:
        array = np.asarray(indices, dtype=np.int64).reshape(-1)  # (B,)
        array = np.where(array < 0, array + self.size, array)
        if array.size and (array.min() < 0 or array.max() >= self.size):
            raise IndexError(
                f"indices={list(indices)[:8]} reach outside the {self.size} scenes: use 0 to {self.size - 1}"
            )
        return array

    def _donors(self, indices: np.ndarray) -> list[dict]:
        """For each scene the image and the tags of another one, where a degradation needs them."""
        if not any(name in (*NEEDS_DONOR, *NEEDS_FOREIGN_TAGS) for name in self.degradations):
            return [{}] * len(indices)
        # A scene behind the last is used when there is only one; the layout is a function of any index.
        step = 1 + random_uniforms(stable_hash(self.key, "donors", self.degradation_seed), indices, 1)[:, 0] * max(
            self.size - 1, 1
        )
        others = self.layout((indices + step.astype(np.int64)) % max(self.size, 2))
        records = self._records(others, draw_images(self.key, others))
        return [{"donor": record["image"], "foreign_tags": record["tags"]} for record in records]

    def layout(self, indices: Indices) -> SceneLayout:
        """Objects and questions of scenes as arrays, without pixels or words (fast enough for text-only training)."""
        return draw_layout(
            self.key,
            np.asarray(indices, dtype=np.int64),
            self.prior_strength,
            self.split == "prior_broken",
            self.tasks,
            self.question_types,
        )

    def tags(self, layout: SceneLayout) -> dict:
        """Tags of a layout as arrays, see [`draw_tags`]."""
        return draw_tags(self.key, layout, self.tag_miss_rate, self.tag_invention_rate, self.tag_sharpness)

    def batch(self, indices: Indices) -> dict:
        """Clean scenes as arrays, for training on pixels without going through records.

        Returns:
            dict with `images` uint8 `(B, 48, 48, 3)`; `shape`, `color`, `cell` int64 `(B, 4)` and `bbox` int64
            `(B, 4, 4)` by object slot (-1, and 0 for boxes, where there is none; slot 0 is the question's target);
            `cell_shape`, `cell_color` int64 `(B, 9)` by grid cell in reading order (-1 where empty).
        """
        layout = self.layout(self._checked(indices))
        scene, slot = np.nonzero(layout.shape >= 0)
        cells = {}
        for name, values in (("cell_shape", layout.shape), ("cell_color", layout.color)):
            cells[name] = np.full((len(layout.indices), NUM_CELLS), -1)
            cells[name][scene, layout.cell[scene, slot]] = values[scene, slot]
        return {
            "images": draw_images(self.key, layout),
            "shape": layout.shape,
            "color": layout.color,
            "cell": layout.cell,
            "bbox": object_boxes(self.key, layout),
            **cells,
        }

    def records(self, indices: Indices, images: bool = True) -> list[dict]:
        """Clean records of scenes; without images (`image` None) much faster, for text-only training."""
        layout = self.layout(self._checked(indices))
        return self._records(layout, draw_images(self.key, layout) if images else None)

    def _records(self, layout: SceneLayout, images: np.ndarray | None) -> list[dict]:
        tags = self.tags(layout)
        order = np.argsort(np.where(layout.cell < 0, NUM_CELLS, layout.cell), axis=1)  # (B, 4) reading order
        # Plain lists: indexing numpy scalars one by one would take most of the time.
        boxes = object_boxes(self.key, layout)
        words = random_uniforms(stable_hash(self.key, "words"), layout.indices, 3)
        columns = [
            values.tolist()
            for values in (
                layout.indices, layout.num_objects, layout.shape, layout.color, layout.cell, boxes, order, layout.task,
                layout.question_type, layout.asked_shape, layout.asked_color, layout.present,
                tags["shape"], tags["color"], tags["score"], words,
            )
        ]  # fmt: skip
        records = []
        for row, values in enumerate(zip(*columns, strict=True)):
            image = Image.fromarray(images[row]) if images is not None else None
            records.append(self._record(image, *values))
        return records

    def _record(
        self, image, index, num_objects, shapes, colors, cells, boxes, order, task_id, type_id, shape_id, color_id,
        present, tag_shapes, tag_colors, tag_scores, u,
    ) -> dict:  # fmt: skip
        slots = order[:num_objects]
        objects = [
            {
                "shape": SHAPES[shapes[slot]],
                "color": COLORS[colors[slot]],
                "place": PLACES[cells[slot]],
                "cell": cells[slot],
                "bbox": boxes[slot],
            }
            for slot in slots
        ]
        target_index = slots.index(0)
        target = objects[target_index]
        phrases = [place_phrase(item["cell"]) for item in objects]
        tags = [
            [tag_name(color, shape), score]
            for color, shape, score in zip(tag_colors, tag_shapes, tag_scores, strict=True)
            if shape >= 0
        ]
        tags.sort(key=lambda tag: -tag[1])
        task = TASKS[task_id]
        record = {
            "id": f"scenes-{self.split}-{self.seed}-{index}",
            "image": image,
            "task": task,
            "question": CAPTION_QUESTION,
            "captions": captions_text(objects, phrases, u),
            "tags": tags,
        }
        question_type = prior_answer = None
        if task == "vqa":
            question_type = QUESTION_TYPES[type_id]
            shape = SHAPES[shape_id] if shape_id >= 0 else None
            color = COLORS[color_id] if color_id >= 0 else None
            record["question"] = question_text(question_type, shape, color)
            count = sum(item["shape"] == shape for item in objects)
            record["answers"] = [answer_text(question_type, target, count, present)]
            prior_answer = prior_answer_text(question_type, shape, color)
            if (question_type == "count" and count == 0) or not present:
                target_index = None
        elif task == "grounding":
            choices = referring_expressions(target, phrases[target_index], objects)
            record["question"] = choices[int(u[2] * len(choices))]
            record["bbox"] = target["bbox"]
        else:
            target_index = None
        true = {(item["color"], item["shape"]) for item in objects}
        # What the prior would say: first the target's shape in its prior colour, then the scene's other shapes, then
        # all.
        likely = dict.fromkeys(
            [target["shape"], *(item["shape"] for item in objects), *SHAPES[index % 8 :], *SHAPES[: index % 8]]
        )
        if question_type == "presence" and not present:
            misleading = (str(color), str(shape))
        else:
            # The target in the prior's colour (or the colour on the prior's shape), else in another that is not there.
            turn = int(u[2] * 8)
            wrong = [(c, target["shape"]) for c in (PRIOR_COLOR_OF_SHAPE[target["shape"]], *COLORS[turn:], *COLORS)]
            if question_type == "shape":
                wrong = [(target["color"], s) for s in (prior_answer, *SHAPES[turn:], *SHAPES)]
            misleading = next(pair for pair in wrong if pair not in true)
        record["metadata"] = {
            "objects": objects,
            "target": target_index,
            "question_type": question_type,
            "prior_answer": prior_answer,
            "prior_tags": [
                f"{PRIOR_COLOR_OF_SHAPE[shape]} {shape}"
                for shape in likely
                if (PRIOR_COLOR_OF_SHAPE[shape], shape) not in true
            ],
            "misleading_tag": " ".join(misleading),
            "scene": index,
        }
        return record

    def to_iterable(self, num_shards: int = 1):
        """The same records as a `datasets.IterableDataset` (streams, shards over workers and processes, resumes).

        Args:
            num_shards (`int`, *optional*, defaults to 1): contiguous parts that workers or processes can share.
        """
        from datasets import IterableDataset

        bounds = np.linspace(0, self.size, num_shards + 1).astype(int).tolist()
        spans = list(zip(bounds[:-1], bounds[1:], strict=True))
        return IterableDataset.from_generator(_generate, gen_kwargs={"scenes": [self] * num_shards, "spans": spans})


def _generate(scenes: list[Scenes], spans: list[tuple[int, int]]) -> Iterator[dict]:
    for dataset, (first, last) in zip(scenes, spans, strict=True):
        for start in range(first, last, _BLOCK):
            yield from dataset.__getitems__(range(start, min(start + _BLOCK, last)))
