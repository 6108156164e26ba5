"""The study's plots: accuracy by condition for each prompt, and what each router adds."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend must be chosen first: there is no screen)
from matplotlib.lines import Line2D  # noqa: E402
from matplotlib.patches import Patch  # noqa: E402

from poise.training.study_plan import AXES, Cell, StudyPlan  # noqa: E402
from poise.training.study_summary import IMAGE_FAILS, TAGS_FAIL, Run, estimates, gains, scores  # noqa: E402

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
