"""The demo's image: accuracy by condition and router, what the router did, and two scenes with their answers."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend must be chosen first: there is no screen)

Row = Mapping[str, Any]
COLORS = ("#9aa5b1", "#2563eb", "#d97706", "#059669")
IMAGE_COLOR, TEXT_COLOR = "#2563eb", "#d97706"


def draw_report(
    rows_by_model: Mapping[str, Sequence[Row]], examples: Sequence[Mapping[str, Any]], path: Path, chance: float
) -> None:
    """
    Write the report as PNG.

    Args:
        rows_by_model: `conditions.evaluate_conditions` of each model, by the name of its router.
        examples: dicts with `image` (PIL), `title`, `question`, `tags` and `answers` ({router: text}), `truth`.
        path: the PNG file.
        chance: accuracy of guessing, drawn as a line.
    """
    figure = plt.figure(figsize=(13, 10.5), layout="constrained")
    charts, scenes = figure.subfigures(2, 1, height_ratios=[2.4, 1.0])
    upper, lower = charts.subplots(2, 1, height_ratios=[1.3, 1.0])
    _draw_accuracy(upper, rows_by_model, chance)
    _draw_weights(lower, rows_by_model)
    panels = scenes.subplots(1, 4, width_ratios=[1.0, 1.6, 1.0, 1.6])
    for (image, words), example in zip((panels[:2], panels[2:]), examples, strict=True):
        _draw_example(image, words, example)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_accuracy(axes, rows_by_model, chance):
    width = 0.8 / len(rows_by_model)
    for offset, (name, rows) in enumerate(rows_by_model.items()):
        left = [index - 0.4 + width * (offset + 0.5) for index in range(len(rows))]
        values = [row["accuracy"] for row in rows]
        errors = [
            [row["accuracy"] - row["low"] for row in rows],
            [row["high"] - row["accuracy"] for row in rows],
        ]
        axes.bar(left, values, width, color=COLORS[offset % len(COLORS)], label=f"router: {name}")
        axes.errorbar(left, values, yerr=errors, fmt="none", ecolor="#1f2937", elinewidth=1, capsize=2)
    axes.axhline(chance, color="#6b7280", linewidth=1, linestyle=":")
    axes.text(len(rows) - 0.45, chance + 0.02, "chance", fontsize=8, color="#6b7280")
    axes.set_xticks(range(len(rows)), [row["condition"] for row in rows], rotation=15)
    axes.set_ylim(0, 1.04)
    axes.set_ylabel("right answers (95 % interval)")
    axes.set_title("How the models hold up. No degradation was ever seen in training.", loc="left")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(rows_by_model), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_weights(axes, rows_by_model):
    routed = {name: rows for name, rows in rows_by_model.items() if rows[0]["image_weight"] is not None}
    axes.set_ylabel("mean router weight")
    axes.set_ylim(0, 1.08)
    axes.spines[["top", "right"]].set_visible(False)
    if not routed:
        axes.text(0.5, 0.5, "no router", transform=axes.transAxes, ha="center")
        return
    name, rows = list(routed.items())[-1]
    for shift, key, color, label in (
        (-0.2, "image_weight", IMAGE_COLOR, "image stream"),
        (0.2, "text_weight", TEXT_COLOR, "tag stream (soft prompt)"),
    ):
        bars = axes.bar([index + shift for index in range(len(rows))], [row[key] for row in rows], 0.38, color=color)
        axes.bar_label(bars, fmt="%.2f", fontsize=7)
        bars.set_label(label)
    axes.set_xticks(range(len(rows)), [row["condition"] for row in rows], rotation=15)
    axes.set_title(f"What the {name} router did: 1 = stream trusted, 0 = faded to its null token", loc="left")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)


def _draw_example(image, words, example):
    image.imshow(example["image"], interpolation="nearest")
    image.set_axis_off()
    image.set_title(example["title"], fontsize=10)
    words.set_axis_off()
    tags = ", ".join(f"{name} {score:.2f}" for name, score in example["tags"]) or "none"
    lines = [*textwrap.wrap(f"tags: {tags}", 38), "", example["question"], f"right: {example['truth']}", ""]
    lines += [f"router {name}: {answer}" for name, answer in example["answers"].items()]
    words.text(0, 0.98, "\n".join(lines), va="top", fontsize=10, transform=words.transAxes)
