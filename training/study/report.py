"""The study in words and pictures: `results.md` beside a folder with plots and the raw figures.

What the runs of a study say together: means over seeds with intervals, and paired differences between routers.

The study's plots: accuracy by condition for each prompt, and what each router adds.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib
from matplotlib import pyplot as plt  # noqa: E402  (the backend must be chosen first: there is no screen)
from matplotlib.lines import Line2D  # noqa: E402
from matplotlib.patches import Patch  # noqa: E402

from .plan import (
    AXES,  # noqa: E402
    Cell,
    StudyPlan,
)

Run = Mapping[str, Any]
# fmt: off
# 97.5 % quantiles of Student's t by degrees of freedom; from 30 on the normal one is near enough.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
           2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045)
# fmt: on

IMAGE_FAILS, TAGS_FAIL = "image fails (mean)", "tags fail (mean)"


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and the half-width of its 95 % interval (Student's t; infinite for a single seed)."""

    mean: float
    half_width: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        if len(values) < 2:
            return cls(mean(values), math.inf)
        quantile = STUDENT[len(values) - 2] if len(values) - 2 < len(STUDENT) else 1.96
        return cls(mean(values), quantile * stdev(values) / math.sqrt(len(values)))

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return abs(self.mean) > self.half_width

    def __str__(self) -> str:
        width = "" if math.isinf(self.half_width) else f" ± {self.half_width:.2f}".replace("0.", ".")
        return f"{self.mean:.2f}".replace("0.", ".") + width


def cell_of(run: Run) -> Cell:
    return Cell(run["router"], run["prompt"], run["language_model"], run["training"])


def scores(plan: StudyPlan) -> dict[str, Callable[[Run], float]]:
    """Accuracy by condition, and the means over the conditions in which picture or tags fail."""

    def accuracy(name: str) -> Callable[[Run], float]:
        return lambda run: run["conditions"][name]["accuracy"]

    def average(stream: str) -> Callable[[Run], float]:
        names = [condition.name for condition in plan.conditions if condition.stream == stream]
        return lambda run: mean(run["conditions"][name]["accuracy"] for name in names)

    found = {condition.name: accuracy(condition.name) for condition in plan.conditions}
    for stream, title in (("image", IMAGE_FAILS), ("tags", TAGS_FAIL)):
        if any(condition.stream == stream for condition in plan.conditions):
            found[title] = average(stream)
    return found


def estimates(runs: Sequence[Run], score: Callable[[Run], float]) -> dict[Cell, Estimate]:
    """Mean of a score over the seeds of every cell."""
    values: dict[Cell, list[float]] = {}
    for run in runs:
        values.setdefault(cell_of(run), []).append(score(run))
    return {cell: Estimate.of(found) for cell, found in values.items()}


def gains(runs: Sequence[Run], score: Callable[[Run], float]) -> dict[Cell, Estimate]:
    """What a router adds to the same model without one, as differences paired by seed."""
    by_key = {(cell_of(run), run["seed"]): score(run) for run in runs}
    differences: dict[Cell, list[float]] = {}
    for (cell, seed), value in by_key.items():
        without = (Cell("none", cell.prompt, cell.language_model, cell.training), seed)
        if cell.router != "none" and without in by_key:
            differences.setdefault(cell, []).append(value - by_key[without])
    return {cell: Estimate.of(found) for cell, found in differences.items()}


def judging(runs: Sequence[Run], score: Callable[[Run], float]) -> dict[Cell, Estimate]:
    """What a reliability router's verdicts add to the same trained model that trusts everything, paired by seed."""
    differences: dict[Cell, list[float]] = {}
    for run in runs:
        if run["held_open"]:
            trusting = {**run, "conditions": run["held_open"]}
            differences.setdefault(cell_of(run), []).append(score(run) - score(trusting))
    return {cell: Estimate.of(found) for cell, found in differences.items()}


matplotlib.use("Agg")

ROUTER_COLORS = {"none": "#9aa5b1", "gate": "#d97706", "channel": "#059669", "reliability": "#2563eb",
                 "reliability+question": "#1e1b4b", "reliability+question+tags": "#c026d3"}  # fmt: skip
CHANCE = 1 / 8


def draw_conditions(plan: StudyPlan, runs: Sequence[Run], cells: Sequence[Cell], path: Path) -> None:
    """One panel for each prompt: bars by condition and router, with intervals over seeds."""
    prompts = [prompt for prompt in AXES["prompt"] if any(cell.prompt == prompt for cell in cells)]
    names = [condition.name for condition in plan.conditions]
    measured = scores(plan)
    columns = {name: estimates(runs, measured[name]) for name in names}
    figure, panels = plt.subplots(
        len(prompts), 1, figsize=(12, 2.2 * len(prompts) + 1), sharex=True, squeeze=False, layout="constrained"
    )
    for axes, prompt in zip(panels[:, 0], prompts, strict=True):
        shown = [cell for cell in cells if cell.prompt == prompt]
        width = 0.84 / len(shown)
        for place, cell in enumerate(shown):
            left = [index - 0.42 + width * (place + 0.5) for index in range(len(names))]
            values = [columns[name][cell] for name in names]
            errors = [min(value.half_width, 1.0) if len(plan.seeds) > 1 else 0.0 for value in values]
            axes.bar(left, [value.mean for value in values], width, color=ROUTER_COLORS[cell.router],
                     yerr=errors, error_kw={"elinewidth": 0.8, "capsize": 1.5, "ecolor": "#1f2937"})  # fmt: skip
        axes.axhline(CHANCE, color="#6b7280", linewidth=1, linestyle=":")
        axes.set_ylim(0, 1.02)
        axes.set_ylabel(f"prompt {prompt}")
        axes.spines[["top", "right"]].set_visible(False)
    routers = {cell.router for cell in cells}
    named = [Patch(color=color, label=router) for router, color in ROUTER_COLORS.items() if router in routers]
    chance = Line2D([], [], color="#6b7280", linewidth=1, linestyle=":", label="chance")
    panels[0, 0].legend(handles=[*named, chance], ncols=7, frameon=False, loc="lower left", bbox_to_anchor=(0, 1.12),
                        fontsize=9, columnspacing=1.2, borderaxespad=0)  # fmt: skip
    panels[0, 0].set_title("right answers by router, mean and 95 % interval over seeds", loc="left", fontsize=10)
    panels[-1, 0].set_xticks(range(len(names)), names, rotation=20, ha="right")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def draw_gains(plan: StudyPlan, runs: Sequence[Run], path: Path) -> None:
    """What a router adds where the picture fails and where the tags fail; one line a pairing."""
    measured = scores(plan)
    titles = [title for title in ("clean", IMAGE_FAILS, TAGS_FAIL) if title in measured]
    found = {title: gains(runs, measured[title]) for title in titles}
    cells = list(dict.fromkeys(cell for column in found.values() for cell in column))
    cells.sort(key=lambda cell: (cell.training, cell.language_model, AXES["prompt"].index(cell.prompt),
                                 AXES["router"].index(cell.router)), reverse=True)  # fmt: skip
    figure, panels = plt.subplots(
        1, len(titles), figsize=(12, 0.24 * len(cells) + 1.5), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, title in zip(panels[0], titles, strict=True):
        for height, cell in enumerate(cells):
            gain = found[title][cell]
            error = gain.half_width if len(plan.seeds) > 1 else 0.0
            axes.errorbar(gain.mean, height, xerr=error, fmt="o", markersize=4, color=ROUTER_COLORS[cell.router],
                          elinewidth=1.2)  # fmt: skip
        axes.axvline(0, color="#1f2937", linewidth=0.8)
        axes.set_title(title, fontsize=10, loc="left")
        axes.grid(axis="x", color="#e5e7eb")
        axes.spines[["top", "right"]].set_visible(False)
    labels = [f"{cell.training}, {cell.language_model}, {cell.prompt}: {cell.router}" for cell in cells]
    panels[0, 0].set_yticks(range(len(cells)), labels, fontsize=8)
    figure.supxlabel("accuracy with the router minus without, paired by seed, 95 % interval", fontsize=9)
    figure.savefig(path, dpi=100)
    plt.close(figure)


JUDGING = """\
A reliability router does two things: in training it drops streams, afterwards it judges them. This is the same trained
model with its verdicts against itself trusting everything; what is left of the gain above is what dropped streams
teach."""


def write_results(plan: StudyPlan, runs: Sequence[Run], folder: Path, command: str) -> Path:
    """
    `folder/results.md` with its tables, plots and raw figures under `folder/results/`.

    Args:
        plan ([`StudyPlan`]), runs (`Sequence`): what was planned, and what `run_grid` returned.
        folder (`Path`): made if missing.
        command (`str`): how it was made, written into the page.
    """
    beside = folder / "results"
    beside.mkdir(parents=True, exist_ok=True)
    (beside / "study.json").write_text(json.dumps(list(runs), indent=1) + "\n", encoding="utf-8")
    sections = [_opening(plan, runs, command), "## What stands out", _findings(plan, runs)]
    for training in AXES["training"]:
        for language_model in reversed(AXES["language_model"]):
            cells = _cells(runs, training, language_model)
            if not cells:
                continue
            name = f"{training}_{language_model}"
            draw_conditions(plan, runs, cells, beside / f"{name}.png")
            sections += [
                f"## Trained on {training} streams, language model {_spoken(language_model)}",
                f"![accuracy by condition](results/{name}.png)",
                *_accuracy_tables(plan, runs, cells),
            ]
    draw_gains(plan, runs, beside / "gains.png")
    sections += ["## What each router adds", "![gains](results/gains.png)", _gain_table(plan, runs)]
    if any(run["held_open"] for run in runs):
        sections += ["## What the reliability router's verdicts add", JUDGING, _gain_table(plan, runs, judging)]
    sections += ["## Parameters and time", _cost_table(runs)]
    page = folder / "results.md"
    page.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    return page


def _spoken(language_model: str) -> str:
    return "frozen" if language_model == "frozen" else "with LoRA"


def _cells(runs: Sequence[Run], training: str, language_model: str) -> list[Cell]:
    cells = dict.fromkeys(map(cell_of, runs))
    return [cell for cell in cells if (cell.training, cell.language_model) == (training, language_model)]


def _opening(plan: StudyPlan, runs: Sequence[Run], command: str) -> str:
    seconds = sum(run["seconds"] for run in runs)
    return f"""\
# Results of the study

Made by `{command}`; every figure on this page was printed by that command, the raw ones are in
[results/study.json](results/study.json).

{len(plan.cells)} models × {len(plan.seeds)} seeds ({", ".join(map(str, plan.seeds))}), each trained for {plan.steps} \
steps of {plan.batch_size} on {plan.train_scenes:,} drawn
scenes and asked {plan.samples} questions of colour under each condition (chance .125). Training took \
{seconds / 3600:.1f} core hours together. Backbones: the shipped
tiny ones; vision tower and tag encoder are frozen everywhere. In training a shape has its prior colour in \
{plan.scenes.get("prior_strength", 0.9):.0%} of the scenes and a
random one else; conditions other than "clean" ask about scenes in which it *never* has it, so an answer from the \
prior is always wrong.

Figures are means over seeds ± half of the 95 % interval (Student's t over seeds; the questions are the same for all).
A gain is the difference to the same model without a router, paired by seed. **Bold** marks gains whose interval leaves
out zero."""


def _findings(plan: StudyPlan, runs: Sequence[Run]) -> str:
    """Sentences that follow from the figures alone."""
    lines = []
    measured = scores(plan)
    for title in ("clean", IMAGE_FAILS, TAGS_FAIL):
        if title not in measured:
            continue
        found = estimates(runs, measured[title])
        best = max(found, key=lambda cell: found[cell].mean)
        lines.append(f"* {title}: the best model is {describe(best)} with {found[best]}.")
    for title in (IMAGE_FAILS, TAGS_FAIL):
        if title not in measured:
            continue
        for router in AXES["router"][1:]:
            found = {cell: gain for cell, gain in gains(runs, measured[title]).items() if cell.router == router}
            if not found:
                continue
            better = [cell for cell, gain in found.items() if gain.is_clear and gain.mean > 0]
            worse = [cell for cell, gain in found.items() if gain.is_clear and gain.mean < 0]
            lines.append(
                f"* {title}: `{router}` is clearly better than no router in {len(better)} of {len(found)} pairings and "
                f"clearly worse in {len(worse)}; mean gain {sum(g.mean for g in found.values()) / len(found):+.2f}."
            )
    return "\n".join(lines)


def describe(cell: Cell) -> str:
    return (
        f"router `{cell.router}`, prompt `{cell.prompt}`, language model {_spoken(cell.language_model)}, "
        f"trained on {cell.training} streams"
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _accuracy_tables(plan: StudyPlan, runs: Sequence[Run], cells: Sequence[Cell]) -> list[str]:
    """One table for the picture's conditions, one for the tags', so that a page can show them."""
    measured = scores(plan)
    tables = []
    for stream, mean_name in (("image", IMAGE_FAILS), ("tags", TAGS_FAIL)):
        names = [c.name for c in plan.conditions if c.stream in ("none", stream)]
        names += [mean_name] if mean_name in measured else []
        columns = {name: estimates(runs, measured[name]) for name in names}
        rows = [
            [cell.prompt, cell.router, *(columns[name][cell] for name in names)]
            for cell in sorted(cells, key=lambda c: (AXES["prompt"].index(c.prompt), AXES["router"].index(c.router)))
        ]
        tables.append(_table(["prompt", "router", *names], rows))
    return tables


def _gain_table(plan: StudyPlan, runs: Sequence[Run], measure_gains: Any = gains) -> str:
    measured = scores(plan)
    names = ["clean", "prior broken", IMAGE_FAILS, TAGS_FAIL]
    names = [name for name in names if name in measured]
    columns = {name: measure_gains(runs, measured[name]) for name in names}

    def shown(gain: Estimate) -> str:
        return f"**{gain.mean:+.2f}**" if gain.is_clear else f"{gain.mean:+.2f}"

    cells = dict.fromkeys(cell for column in columns.values() for cell in column)
    rows = [
        [cell.training, _spoken(cell.language_model), cell.prompt, cell.router,
         *(shown(columns[name][cell]) for name in names)]
        for cell in cells
    ]  # fmt: skip
    return _table(["training", "language model", "prompt", "router", *names], rows)


def _cost_table(runs: Sequence[Run]) -> str:
    rows = []
    for cell in dict.fromkeys(map(cell_of, runs)):
        own = [run for run in runs if cell_of(run) == cell]
        seconds = sum(run["seconds"] for run in own) / len(own)
        rows.append([cell.training, _spoken(cell.language_model), cell.prompt, cell.router, f"{own[0]['parameters']:,}",
                     own[0]["steps"], f"{seconds:.0f}"])  # fmt: skip
    return _table(["training", "language model", "prompt", "router", "trained parameters", "steps", "seconds"], rows)
