"""The demo's picture: accuracy by condition and router, what the router did, and two scenes with their answers."""

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
        rows_by_model: `condition_table.evaluate_conditions` of each model, by the name of its router.
        examples: dicts with `image` (PIL), `title`, `question`, `tags` and `answers` ({router: text}), `truth`.
        path: the PNG file.
        chance: accuracy of guessing, drawn as a line.
    """
    figure = plt.figure(figsize=(13, 9), layout="constrained")
    grid = figure.add_gridspec(3, 4, height_ratios=[1.25, 0.9, 1.0])
    _draw_accuracy(figure.add_subplot(grid[0, :]), rows_by_model, chance)
    _draw_weights(figure.add_subplot(grid[1, :]), rows_by_model)
    for column, example in enumerate(examples[:2]):
        _draw_example(figure.add_subplot(grid[2, 2 * column]), figure.add_subplot(grid[2, 2 * column + 1]), example)
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
    axes.text(len(rows) - 0.5, chance, " chance", va="bottom", ha="right", fontsize=8, color="#6b7280")
    axes.set_xticks(range(len(rows)), [row["condition"] for row in rows], rotation=15)
    axes.set_ylim(0, 1)
    axes.set_ylabel("accuracy (bars: 95 % interval)")
    axes.set_title("How the models hold up: right answers by condition. No degradation was ever seen in training.")
    axes.legend(loc="upper right", ncols=len(rows_by_model), frameon=False)
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
    axes.set_title(
        f"What the router did (router: {name}): 1 = trusted, 0 = replaced by its null token and the other stream"
    )
    axes.legend(loc="lower left", ncols=2, frameon=False, fontsize=8)


def _draw_example(picture, words, example):
    picture.imshow(example["image"], interpolation="nearest")
    picture.set_axis_off()
    picture.set_title(example["title"], fontsize=10)
    words.set_axis_off()
    tags = ", ".join(f"{name} {score:.2f}" for name, score in example["tags"]) or "none"
    lines = [f"tags: {tags}", "", f"Q: {example['question']}", f"right: {example['truth']}", ""]
    lines += [f"{name}: {answer}" for name, answer in example["answers"].items()]
    words.text(0, 0.95, "\n".join(lines), va="top", fontsize=9, wrap=True, transform=words.transAxes)
