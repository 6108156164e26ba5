"""A contact sheet of scenes: images, questions, answers and tags above, every degradation by severity below."""

import os
import textwrap
from collections.abc import Sequence

import numpy as np

from ..degradations.degradations import DEGRADATION_SETS, DEGRADATION_STREAMS, SEVERITIES, degrade
from .scenes import Scenes


def draw_contact_sheet(
    scenes: Scenes, count: int = 12, path: str | os.PathLike = "scenes.png", degradations: Sequence[str] | None = None
) -> None:
    """Writes the sheet as a PNG.

    Upper part: scenes 0 to `count` - 1; the target's box dashed; under each its question, the right answer, the prior's
    answer where it is another, and the tags with bars for their scores, red where a tag is invented. Lower part: one
    row a degradation, clean and severities 1–5, of one scene: the image, or the tags, or the words.

    Args:
        scenes (`Scenes`): what to show; its own degradations are shown as they are.
        count (`int`, *optional*, defaults to 12): scenes in the upper part, at most `len(scenes)`.
        path (`str`, *optional*, defaults to `"scenes.png"`): where to write.
        degradations (`Sequence[str]`, *optional*): rows of the lower part; all by default, none for `[]`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = scenes.__getitems__(range(min(count, len(scenes))))
    names = list(DEGRADATION_SETS["standard"]) if degradations is None else list(degradations)
    columns = 6
    scene_rows = -(-len(records) // columns)
    heights = [2.9] * scene_rows + [
        {"image": 1.75, "tags": 1.4, "question": 0.8}[DEGRADATION_STREAMS[n]] for n in names
    ]
    figure = Figure(figsize=(15, sum(heights) + 0.7), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(heights), columns, height_ratios=heights)
    for number, record in enumerate(records):
        cell = grid[number // columns, number % columns].subgridspec(2, 1, height_ratios=[1.25, 1])
        _show_image(figure.add_subplot(cell[0]), record)
        _show_words(figure.add_subplot(cell[1]), record)

    example = _example(scenes)
    donor = scenes[1]["image"] if len(scenes) > 1 else example["image"]
    for row, name in enumerate(names, start=scene_rows):
        for column, severity in enumerate((0, *SEVERITIES)):
            axes = figure.add_subplot(grid[row, column])
            record = degrade(example, name, severity, donor=donor) if severity else example
            _show_degraded(axes, record, DEGRADATION_STREAMS[name])
            axes.set_title(f"{name} {severity}" if severity else f"{name}: clean", fontsize=8, loc="left")
    strength = "prior broken" if scenes.split == "prior_broken" else f"prior strength {scenes.prior_strength:g}"
    figure.suptitle(f"Scenes, split {scenes.split}, seed {scenes.seed}, {strength}", fontsize=12)
    figure.savefig(path, dpi=100)


def _example(scenes: Scenes) -> dict:
    """The first colour question about three objects whose tags have scores far apart, or else scene 0."""
    for number in range(min(500, len(scenes))):
        record = scenes[number]
        if record["metadata"]["question_type"] == "color" and len(record["metadata"]["objects"]) == 3:
            if len(record["tags"]) >= 3 and record["tags"][0][1] - record["tags"][-1][1] > 0.25:
                return record
    return scenes[0]


def _show_image(axes, record: dict) -> None:
    axes.imshow(np.asarray(record["image"]), interpolation="nearest")
    axes.set_axis_off()
    axes.set_anchor("W")
    target = record["metadata"]["target"]
    for number, item in enumerate(record["metadata"]["objects"]):
        x, y, width, height = item["bbox"]
        style = {"edgecolor": "white", "linestyle": "--", "linewidth": 1.5} if number == target else {"alpha": 0.0}
        axes.add_patch(_rectangle(x - 0.5, y - 0.5, width, height, **style))


def _rectangle(x: float, y: float, width: float, height: float, **style):
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), width, height, fill=False, **style)


def _show_words(axes, record: dict) -> None:
    metadata = record["metadata"]
    kind = metadata["question_type"] or record["task"]
    if record["task"] == "vqa":
        answer = record["answers"][0]
        if metadata["prior_answer"] not in (None, answer):
            answer += f"   (prior: {metadata['prior_answer']})"
    elif record["task"] == "grounding":
        answer = str(record["bbox"])
    else:
        answer = record["captions"][0]
    lines = [*textwrap.wrap(f"{kind}: {record['question']}", 38), *textwrap.wrap(f"→ {answer}", 44)]
    bold = len(lines) - len(textwrap.wrap(f"→ {answer}", 44))
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(6.2, -0.5))
    for number, line in enumerate(lines[:3]):
        axes.text(0, number, line, fontsize=7.5, va="center", weight="bold" if number < bold else "normal")
    _show_tags(axes, record, first=len(lines[:3]), most=6 - len(lines[:3]))


def _show_tags(axes, record: dict, first: int, most: int) -> None:
    true = {f"{item['color']} {item['shape']}" for item in record["metadata"]["objects"]}
    for number, (name, score) in enumerate(record["tags"][:most], start=first):
        color = "tab:green" if name in true else "tab:red"
        axes.barh(number, 0.35 * score, left=0.62, height=0.6, color=color)
        axes.text(0.0, number, name, fontsize=7.5, va="center", color=color)
        axes.text(0.6, number, f"{score:.2f}", fontsize=7.5, va="center", ha="right", color=color)
    if not record["tags"]:
        axes.text(0, first, "no tags", fontsize=7.5, va="center", style="italic")


def _show_degraded(axes, record: dict, stream: str) -> None:
    axes.set_axis_off()
    if stream == "image":
        axes.imshow(np.asarray(record["image"]), interpolation="nearest")
        axes.set_anchor("W")
        return
    axes.set(xlim=(0, 1), ylim=(5.5, -0.5))
    if stream == "tags":
        _show_tags(axes, record, first=0, most=6)
        return
    text = "\n".join(textwrap.wrap(record["question"], 34))
    axes.text(0, -0.3, text, fontsize=7.5, va="top")
