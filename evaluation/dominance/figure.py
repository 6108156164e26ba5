"""Figure of what dominance measured: coalitions, Shapley shares, attention by layer, the router's weights."""

import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ..intervals import Score
from ..score_bars import draw_bars
from ..whole_files import save_figure
from .coalitions import MEASURES, coalition_name, coalitions
from .report import conditions_of, measured_baselines

Scores = Mapping[str, float]
COLORS = {"image": "#0072B2", "tags": "#D55E00", "question": "#009E73"}
_BASELINE_COLORS = {"mean": "#9aa5b1", "swap": "#374151"}
_BASELINE_NAMES = {"mean": "mean tokens", "swap": "swapped"}
_BASELINE_LABELS = {"mean": "the rest is mean tokens", "swap": "the rest is another sample's"}


def draw_dominance(
    coalition_scores: Scores | None,
    attention: Scores | None,
    router: Scores | None,
    players: Sequence[str],
    sentences: Sequence[str],
    path: str | os.PathLike,
) -> None:
    """PNG; a panel for each part that was measured, the verdict above."""
    panels: list[tuple[Any, ...]] = []
    if coalition_scores is not None:
        panels += [(_coalitions, coalition_scores, players), (_shares, coalition_scores, players)]
    if attention is not None and "mdi" in attention:
        panels.append((_attention, attention))
    if router is not None:
        panels.append((_router, router))
    rows = max(1, -(-len(panels) // 2))
    figure = Figure(figsize=(12.5, 4.1 * rows + 0.9), layout="constrained")
    figure.suptitle(
        "\n".join(textwrap.wrap(" ".join(sentences[:1]), 110)), x=0.01, ha="left", fontsize=12, fontweight="bold"
    )
    axes = figure.subplots(rows, 2, squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.axis("off")
    for axis, (draw, *arguments) in zip(axes, panels, strict=False):
        draw(axis, *arguments)
        axis.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path, dpi=125)


def _coalitions(axis: Axes, scores: Scores, players: Sequence[str]) -> None:
    some = coalitions(players)
    baselines = measured_baselines(scores)
    width = 0.8 / len(baselines)
    for number, baseline in enumerate(baselines):
        keys = [f"{baseline}_accuracy_{coalition_name(names)}" for names in some[:-1]] + ["accuracy"]
        shown = [Score.read(scores, key) for key in keys]
        places = np.arange(len(some)) - 0.4 + width * (number + 0.5)
        color, label = _BASELINE_COLORS[baseline], _BASELINE_LABELS[baseline]
        draw_bars(axis, places, shown, width, color, label, form=".2f", ecolor="#D55E00")
    axis.set_xticks(range(len(some)), [" +\n".join(names) or "nothing" for names in some], fontsize=8)
    axis.set_xlabel("what is right")
    axis.set_ylabel("accuracy (lines: 95 %)")
    axis.set_ylim(0, 1.1)
    axis.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axis.legend(frameon=False, fontsize=9, loc="upper left")
    axis.set_title("Accuracy by what the model is rightly told", loc="left", fontsize=11)


def _shares(axis: Axes, scores: Scores, players: Sequence[str]) -> None:
    groups = [(baseline, measure) for baseline in measured_baselines(scores) for measure in MEASURES]
    for offset, player in enumerate(players):
        keys = {place: f"{baseline}_{measure}_share_{player}" for place, (baseline, measure) in enumerate(groups)}
        shown = {place: Score.read(scores, key) for place, key in keys.items() if key in scores}
        if shown:
            places = np.array(list(shown)) + (offset - (len(players) - 1) / 2) * 0.26
            draw_bars(axis, places, list(shown.values()), 0.25, COLORS[player])
        axis.bar(0, 0, color=COLORS[player], label=player)  # in the legend, whatever is shown
    axis.axhline(0, color="#666666", lw=0.8)
    labels = [f"{measure.replace('_', '-')}\n{_BASELINE_NAMES[baseline]}" for baseline, measure in groups]
    axis.set_xticks(range(len(groups)), labels, fontsize=9)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set_ylabel("Shapley share (lines: 95 %)")
    axis.legend(frameon=False, fontsize=9, ncols=len(players), loc="upper right")
    top = max(1.0, axis.get_ylim()[1])
    axis.set_ylim(top=top * 1.12)
    axis.set_title("Who earns what the input adds", loc="left", fontsize=11)


def _attention(axis: Axes, scores: Scores) -> None:
    layers = range(int(scores["layers"]))
    lines = [
        ("mdi", "MDI: text over image, per token", "#D55E00", "o"),
        ("mdi_without_first", "MDI without the first position", "#E69F00", "s"),
        ("aei_image", "AEI of the image tokens", "#0072B2", "D"),
    ]
    if not scores["tokens_first"]:  # the image stands first: both are the same
        del lines[1]
    for name, label, color, mark in lines:
        keys = {layer: f"{name}_layer_{layer}" for layer in layers if f"{name}_layer_{layer}" in scores}
        if not keys:
            continue
        heights = [scores[key] for key in keys.values()]
        axis.plot(list(keys), heights, color=color, marker=mark, ms=5, lw=1.6, label=label)
        low, high = zip(*(Score.read(scores, key).bounds for key in keys.values()), strict=True)
        axis.fill_between(list(keys), low, high, color=color, alpha=0.15, lw=0)
    axis.axhline(1, color="#666666", lw=0.8, ls="--")
    axis.set_yscale("log", base=2)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_xticks(list(layers) if len(layers) <= 16 else list(layers)[:: len(layers) // 12])
    axis.set_xlabel("layer")
    axis.set_ylabel("ratio, log scale (1: like its number of tokens)")
    axis.legend(frameon=False, fontsize=9)
    axis.set_title("Attention of the positions that generate", loc="left", fontsize=11)


def _router(axis: Axes, scores: Scores) -> None:
    names = conditions_of(scores)
    streams = ((-0.2, "image", COLORS["image"], "image"), (0.2, "text", COLORS["tags"], "tags"))
    for shift, stream, color, label in streams:
        for place, name in enumerate(names):
            key = f"{name}_{stream}_weight"
            axis.barh(
                place + shift,
                scores[key],
                0.38,
                color=color,
                xerr=Score.read(scores, key).errors,
                error_kw={"lw": 0.8},
                label=label if place == 0 else None,
            )
    axis.set_yticks(range(len(names)), [name.replace("_", " ") for name in names], fontsize=9)
    axis.invert_yaxis()
    axis.set_xlabel("mean router weight (lines: 95 %)")
    axis.set_xlim(0, max(1.05, axis.get_xlim()[1]))
    axis.legend(frameon=False, fontsize=9, ncols=2, loc="lower right", bbox_to_anchor=(1, 0.985))
    axis.set_title("The router's weights by condition", loc="left", fontsize=11)
