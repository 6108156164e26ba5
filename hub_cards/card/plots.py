"""The images of a card: scores by condition with their intervals, and the training loss."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from .data import CardData, EvaluationRow

BAR, INTERVAL = "#2563eb", "#1f2937"


# Titles of the bars that are drawn of a table.
TITLES = {
    "robustness": "What happens to the answers when a stream fails",
    "dominance": "What the answers lose without a modality, and where the modalities disagree",
}


def draw_plots(folder: Path, card_data: CardData, figures: Mapping[str, Path] | None = None) -> dict[str, str]:
    """
    Draw what there is data for.

    Args:
        folder: of the repository; the images go into `plots/` there.
        card_data ([`CardData`]): of the tables "robustness" and "dominance" the first metric, one bar each; losses.
        figures (*optional*): PNG files that an evaluation drew itself, by the same names; they are taken instead.

    Returns:
        `dict[str, str]`: paths within the repository by name: "robustness", "dominance", "loss".
    """
    drawn = {}
    for name, heading in TITLES.items():
        rows = getattr(card_data, name)
        if figures and name in figures:
            drawn[name] = _copied(figures[name], folder, name)
        elif rows:
            drawn[name] = _saved(_conditions(rows, heading), folder, name)
    if len(card_data.losses) > 1:
        drawn["loss"] = _saved(_loss_curve(card_data.losses), folder, "loss")
    return drawn


def _copied(source: Path, folder: Path, name: str) -> str:
    """The image alone, without what was written beside its pixels."""
    path = folder / "plots" / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    with Image.open(source) as image:
        image.convert("RGB").save(path)
    return path.relative_to(folder).as_posix()


def _saved(figure: Figure, folder: Path, name: str) -> str:
    path = folder / "plots" / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    # No date, no version: the same data gives the same file, and publishing it again changes nothing.
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return path.relative_to(folder).as_posix()


def _conditions(rows: Sequence[EvaluationRow], heading: str) -> Figure:
    metric = rows[0].metric
    rows = [row for row in rows if row.metric == metric]
    figure = Figure(figsize=(8, 1.2 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots()
    places = range(len(rows))
    axes.barh(places, [row.value for row in rows], height=0.65, color=BAR)
    known = {place: row.score for place, row in enumerate(rows) if row.low is not None and row.high is not None}
    if known:
        values, errors = [score.value for score in known.values()], [score.errors for score in known.values()]
        lengths = np.concatenate(errors, axis=1)  # (2, n)
        axes.errorbar(values, list(known), xerr=lengths, fmt="none", ecolor=INTERVAL, elinewidth=1, capsize=2.5)
    axes.set_yticks(places, [row.condition for row in rows], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel(metric + (" (lines: 95 % interval)" if known else ""), parse_math=False)
    if all(0 <= row.value <= 1 for row in rows):
        axes.set_xlim(0, 1)
    axes.set_title(heading, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _loss_curve(losses: Sequence[Sequence[float]]) -> Figure:
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot([step for step, _ in losses], [loss for _, loss in losses], color=BAR, linewidth=1.5)
    axes.set_xlabel("step")
    axes.set_ylabel("training loss")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
