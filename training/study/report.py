"""The study in words and images: `results.md` beside a folder with plots and the raw figures.

Conditions are grouped by what an image alone is worth in them, which a model tells that is shown nothing else: an image
is worthless where it alone answers fewer than 30 % of the questions that it answers when it is sound, and hurt where it
answers fewer than 95 %. Images that lie show something else as if they were sound.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot as plt

from ...evaluation.whole_files import write_whole
from .plan import Cell, StudyPlan

Run = Mapping[str, Any]
# fmt: off
# 97.5 % quantiles of Student's t by degrees of freedom; from 30 on the normal one is near enough.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
           2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045)
# fmt: on


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


WORTHLESS, HURT = 0.3, 0.95  # of what the image alone is worth when it is sound
# What shows or names something else as if it were sound.
LYING_IMAGES = ("swapped_image", "half_swapped", "overlaid", "hue", "channels_swapped", "inversion")
LYING = ("tags_invented", "tags_adversarial", "tags_foreign", "tags_replaced")

# The tags name the prior's answer, and the image shows another one.
CONFLICTS = ("tags_adversarial", "tags_replaced")


def accuracy(run: Run, name: str, view: str | None = None) -> float:
    """Share of right answers under a condition; of a reliability router's run also as `VIEWS` of it."""
    rows = run["conditions"] if view is None else run["views"][view]
    return rows[name]["accuracy"]


def paired_gains(runs: Sequence[Run], cell: Cell, names: Sequence[str], view: str | None = None) -> Estimate | None:
    """What a cell adds to the same model without a router, mean over conditions, paired by seed; `None` if unknown."""
    without = Cell("none", cell.prompt, cell.language_model, cell.training)
    asked = [run for run in runs if view is None or cell_of(run) != cell or view in run["views"]]
    by_key = {(cell_of(run), run["seed"]): run for run in asked}
    seeds = sorted(
        {seed for found, seed in by_key if found == cell} & {seed for found, seed in by_key if found == without}
    )
    if not seeds or not names:
        return None
    gains = [
        mean(accuracy(by_key[cell, seed], name, view) - accuracy(by_key[without, seed], name) for name in names)
        for seed in seeds
    ]
    return Estimate.of(gains)


def groups_of(plan: StudyPlan, runs: Sequence[Run]) -> dict[str, list[str]]:
    """Names of the conditions by group, as the module says; what an image is worth is the mean over seeds."""
    viewed = [run for run in runs if run["views"] and run["training"] == "clean" and run["prompt"] == "dynamic"]

    def worth(name: str) -> float:
        return mean(accuracy(run, name, "image") for run in viewed)

    sound = [condition.name for condition in plan.conditions if condition.stream == "none"]
    of_images = [condition.name for condition in plan.conditions if condition.stream == "image"]
    of_tags = [condition.name for condition in plan.conditions if condition.stream == "tags"]
    groups = {"sound": sound, "worthless images": [], "hurt images": [], "images as good as sound": []}
    groups["images that lie"] = [name for name in of_images if name.split()[0] in LYING_IMAGES]
    reference = worth(sound[-1]) if viewed and sound else 1.0
    for name in [name for name in of_images if name.split()[0] not in LYING_IMAGES] if viewed else ():
        share = worth(name) / max(reference, 1e-9)
        kind = "worthless images" if share < WORTHLESS else "hurt images" if share < HURT else "images as good as sound"
        groups[kind].append(name)
    groups["tags that lie"] = [name for name in of_tags if name.split()[0] in LYING]
    groups["tags otherwise damaged"] = [name for name in of_tags if name.split()[0] not in LYING]
    held_out = [name for name in of_images + of_tags if name.split()[0] in plan.held_out]
    return {title: names for title, names in {**groups, "held out from all tuning": held_out}.items() if names}


def write_results(plan: StudyPlan, runs: Sequence[Run], folder: Path, command: str) -> Path:
    """
    `folder/results.md` with its tables, a plot and the raw figures under `folder/results/`.

    Args:
        plan ([`StudyPlan`]), runs (`Sequence`): what was planned, and what `run_grid` returned, or a part of it.
        folder (`Path`): made if missing.
        command (`str`): how it was made, written into the page.
    """
    beside = folder / "results"
    beside.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(run) for run in runs)  # a run a line
    write_whole(beside / "study.json", f"[\n{lines}\n]\n")
    groups = groups_of(plan, runs)
    cells = list(dict.fromkeys(map(cell_of, runs)))
    routed = [cell for cell in cells if cell.router != "none"]
    main = next((cell for cell in routed if cell.router == "reliability"), routed[0] if routed else cells[0])
    sections = ["# Results of the study", _answers(plan, runs, groups, main), _setting(plan, runs, command)]
    draw_comparison(runs, groups, routed, beside / "comparison.png")
    compared = "![gains of each router, and of its parts, by group](results/comparison.png)"
    sections += ["## By group of conditions", compared, _group_table(runs, groups, routed)]
    draw_gains(plan, runs, main, groups, beside / "gains.png")
    sections += ["## By condition", "![gains by condition](results/gains.png)", _condition_table(runs, groups, main)]
    if conflicts := [condition.name for condition in plan.conditions if condition.name.split()[0] in CONFLICTS]:
        sections += ["## Where a tag names the wrong answer", _CONFLICT_WORDS, _conflict_table(runs, conflicts, main)]
    sections += ["## Parameters and time", _cost_table(runs)]
    page = folder / "results.md"
    write_whole(page, "\n\n".join(sections) + "\n")
    return page


def worst_condition(
    runs: Sequence[Run], cell: Cell, names: Sequence[str], view: str | None = None
) -> tuple[str, Estimate] | None:
    """The condition with the least mean gain."""
    found = [(name, gain) for name in names if (gain := paired_gains(runs, cell, [name], view)) is not None]
    return min(found, key=lambda item: item[1].mean) if found else None


def _answers(plan: StudyPlan, runs: Sequence[Run], groups: Mapping[str, Sequence[str]], cell: Cell) -> str:
    """What helps, by how much, where not, what is unknown: from the figures alone."""
    seeds = sorted({run["seed"] for run in runs if cell_of(run) == cell})
    lines = [
        f"Router `{cell.router}` against the same model without a router: gain in accuracy, mean over {len(seeds)} "
        "training seeds ± half of the 95 % interval over seeds.",
        "",
    ]
    for title, names in groups.items():
        gain = paired_gains(runs, cell, names)
        if gain is None:
            continue
        oracle = _share_of_oracle(runs, cell, names) if title == "worthless images" else None
        of_oracle = "" if oracle is None else f"; {oracle:.0%} of what an oracle gains that drops every such image"
        worst = worst_condition(runs, cell, names)
        assert worst is not None
        lines.append(f"* {title} ({len(names)} conditions): **{_signed(gain)}**{of_oracle}; "
                     f"least under {worst[0]}: {_signed(worst[1])}.")  # fmt: skip
    harmed = sorted(
        (gain.mean, name, gain.is_clear)
        for names in groups.values()
        for name in names
        if (gain := paired_gains(runs, cell, [name])) is not None and gain.mean < -0.02
    )
    shown = {f"{name} ({value:+.2f})": clear for value, name, clear in harmed}
    lines.append(
        f"* Below −.02 in {len(shown)} of {len(plan.conditions)} conditions, by more than seeds differ in "
        f"{sum(shown.values())}" + (f": {', '.join(shown)}." if shown else ".")
    )
    missing = len(plan.cells) * len(plan.seeds) - len({(cell_of(run), run["seed"]) for run in runs})
    lines.append(
        "* Unknown: other backbones and real images (everything here is drawn, 48 pixels)"
        + (f"; {missing} of the plan's {len(plan.cells) * len(plan.seeds)} runs are not done." if missing else ".")
    )
    return "\n".join(lines)


def _share_of_oracle(runs: Sequence[Run], cell: Cell, names: Sequence[str]) -> float | None:
    """The verdicts' gain over trusting everything, as a share of the gain of always leaving the image out."""
    viewed = [run for run in runs if cell_of(run) == cell and run["views"]]
    if not viewed:
        return None
    judged, best = (
        mean(accuracy(run, name, view) - accuracy(run, name, "open") for run in viewed for name in names)
        for view in (None, "tags")
    )
    return judged / best if best > 0 else None


def _setting(plan: StudyPlan, runs: Sequence[Run], command: str) -> str:
    seeds = ", ".join(map(str, sorted({run["seed"] for run in runs})))
    return f"""\
Made by `{command}`, raw figures in [results/study.json](results/study.json). Seeds {seeds}; every model is trained for
{plan.steps:,} steps of {plan.batch_size} on {plan.train_scenes:,} drawn scenes with sound images and tags, and asked \
{plan.samples} questions of colour under each of
{len(plan.conditions)} conditions (chance .125) about scenes in which no shape has the colour that the prior expects. \
Backbones: the shipped tiny
ones, vision tower and tag encoder frozen. "open" is the routed model with its router trusting everything: what is left
is what dropped streams teach, so it is also the row "no router, stream dropout". "image alone" and "tags alone" are
that model with the other stream left out. The oracle is the best of the three in each condition. "without" is the
same trained router without one of its parts, "entropy gate" the same model that answers from whichever single stream
gives the answer of lower entropy. Images that lie are a group of their own, because neither stream tells that such an
image is wrong."""


def _signed(gain: Estimate | None) -> str:
    if gain is None:
        return ""
    width = "" if math.isinf(gain.half_width) else f" ± {gain.half_width:.2f}"
    return f"{gain.mean:+.2f}{width}".replace("0.", ".")


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def rows_of_comparison(runs: Sequence[Run], cells: Sequence[Cell]) -> list[tuple[Cell, str, str | None]]:
    """What stands beside "no router": every routed cell, and as `(cell, title, view)` what else it was asked as."""
    rows: list[tuple[Cell, str, str | None]] = []
    for cell in cells:
        asked = {view: None for run in runs if cell_of(run) == cell for view in run["views"]}
        rows.append((cell, cell.router, None))
        rows += [(cell, f"{cell.router}, {view}", view) for view in asked if view not in ("image", "tags")]
    return rows


def _group_table(runs: Sequence[Run], groups: Mapping[str, Sequence[str]], cells: Sequence[Cell]) -> str:
    everything = list(dict.fromkeys(name for names in groups.values() for name in names))
    rows = []
    for cell, title, view in rows_of_comparison(runs, cells):
        gains = [_signed(paired_gains(runs, cell, names, view)) for names in groups.values()]
        worst = worst_condition(runs, cell, everything, view)
        found = "" if worst is None else f"{worst[0]} {_signed(worst[1])}"
        rows.append([cell.training, cell.language_model, cell.prompt, title, *gains, found])
    return _table(["training", "language model", "prompt", "router", *groups, "worst condition"], rows)


def _condition_table(runs: Sequence[Run], groups: Mapping[str, Sequence[str]], cell: Cell) -> str:
    without = Cell("none", cell.prompt, cell.language_model, cell.training)
    own = [run for run in runs if cell_of(run) == cell]
    plain = [run for run in runs if cell_of(run) == without]
    rows = []
    for title, names in groups.items():
        if title == "held out from all tuning":
            continue  # each of them stands in another group, too, and is marked there
        for name in names:
            views = [
                f"{mean(accuracy(run, name, view) for run in own):.2f}".lstrip("0") if own and own[0]["views"] else ""
                for view in ("open", "image", "tags")
            ]
            weights = [run["conditions"][name]["weights"] for run in own]
            shown = [f"{mean(pair[side] for pair in weights):.2f}" if all(weights) else "" for side in (0, 1)]
            mark = " †" if name in groups.get("held out from all tuning", ()) else ""
            rows.append([title, name + mark, Estimate.of([accuracy(run, name) for run in plain]) if plain else "",
                         Estimate.of([accuracy(run, name) for run in own]), _signed(paired_gains(runs, cell, [name])),
                         *views, *shown])  # fmt: skip
    header = ["group", "condition", "no router", cell.router, "gain", "open", "image alone", "tags alone",
              "weight of image", "of tags"]  # fmt: skip
    return _table(header, rows) + "\n\n† held out from all tuning."


_CONFLICT_WORDS = """\
Sound images, and a tag that names another answer. Text preference ratio (arXiv 2503.02199): of the answers that follow
the image or the tag, the share that follows the tag; lower is better. VRS (arXiv 2601.04897): harmonic mean of accuracy
and one minus that ratio."""


def text_preference_ratio(run: Run, name: str, view: str | None = None) -> float:
    """Share of answers that follow the tag among those that follow the tag or the image; 0 if none does either."""
    row = (run["conditions"] if view is None else run["views"][view])[name]
    followed = row["prior"] + row["accuracy"]
    return row["prior"] / followed if followed else 0.0


def visual_reliance_score(run: Run, name: str, view: str | None = None) -> float:
    """Harmonic mean of accuracy and one minus the text preference ratio."""
    parts = (accuracy(run, name, view), 1 - text_preference_ratio(run, name, view))
    return 2 * parts[0] * parts[1] / sum(parts) if sum(parts) else 0.0


def _conflict_table(runs: Sequence[Run], names: Sequence[str], cell: Cell) -> str:
    without = Cell("none", cell.prompt, cell.language_model, cell.training)
    own = [run for run in runs if cell_of(run) == cell]
    shown: list[tuple[str, list[Run], str | None]] = [
        ("no router", [run for run in runs if cell_of(run) == without], None), (cell.router, own, None)
    ]  # fmt: skip
    if all(run["views"] for run in own):
        shown.append((f"{cell.router}, open", own, "open"))
    rows = []
    for name in names:
        for title, some, view in filter(lambda item: item[1], shown):
            measures = (accuracy, text_preference_ratio, visual_reliance_score)
            rows.append(
                [name, title, *(Estimate.of([measure(run, name, view) for run in some]) for measure in measures)]
            )
    return _table(["condition", "router", "accuracy", "text preference ratio", "VRS"], rows)


def _cost_table(runs: Sequence[Run]) -> str:
    rows = []
    for cell in dict.fromkeys(map(cell_of, runs)):
        own = [run for run in runs if cell_of(run) == cell]
        seconds = sum(run["seconds"] for run in own) / len(own)
        parameters = f"{own[0]['parameters']:,}"
        rows.append([cell.training, cell.language_model, cell.prompt, cell.router, len(own), parameters,
                     own[0]["steps"], f"{seconds:.0f}"])  # fmt: skip
    header = ["training", "language model", "prompt", "router", "runs", "trained parameters", "steps", "seconds"]
    return _table(header, rows) + "\n\nSeconds depend on what else the machine did meanwhile; they are no comparison."


def draw_comparison(
    runs: Sequence[Run], groups: Mapping[str, Sequence[str]], cells: Sequence[Cell], path: Path
) -> None:
    """PNG: one panel a group of conditions, one bar a row of the table, with its interval."""
    matplotlib.use("Agg")
    # One training and one prompt: what differs otherwise is no router.
    shown = [row for row in rows_of_comparison(runs, cells) if _is_plain(row[0], cells[0])] if cells else []
    figure, axes = plt.subplots(
        1,
        len(groups),
        figsize=(1.5 * len(groups) + 2, 0.26 * len(shown) + 1.2),
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    for axis, (title, names) in zip(np.atleast_1d(axes), groups.items(), strict=True):
        for place, (cell, _, view) in enumerate(shown):
            gain = paired_gains(runs, cell, names, view)
            if gain is not None:
                width = 0 if math.isinf(gain.half_width) else gain.half_width
                axis.barh(place, gain.mean, xerr=width, color=f"C{place}", error_kw={"lw": 0.8})
        axis.axvline(0, color="black", lw=0.8)
        axis.set_title(title.replace(" ", "\n", 1), fontsize=8)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    first = np.atleast_1d(axes)[0]
    first.set_yticks(range(len(shown)), [name for _, name, _ in shown])
    first.invert_yaxis()
    figure.supxlabel("gain over no router, in accuracy", fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _is_plain(cell: Cell, other: Cell) -> bool:
    return (cell.prompt, cell.language_model, cell.training) == (other.prompt, other.language_model, other.training)


def draw_gains(
    plan: StudyPlan, runs: Sequence[Run], cell: Cell, groups: Mapping[str, Sequence[str]], path: Path
) -> None:
    """PNG: the gain under every condition with its interval, by group."""
    matplotlib.use("Agg")
    shown = [(title, names) for title, names in groups.items() if title != "held out from all tuning"]
    names = [name for _, some in shown for name in some]
    figure, axis = plt.subplots(figsize=(7.5, 0.16 * len(names) + 1.2), layout="constrained")
    place = 0
    for turn, (title, some) in enumerate(shown):
        found = [(paired_gains(runs, cell, [name]), name) for name in some]
        gains = sorted(((gain, name) for gain, name in found if gain is not None), key=lambda item: item[0].mean)
        if not gains:
            continue
        places = range(place, place + len(gains))
        widths = [0 if math.isinf(gain.half_width) else gain.half_width for gain, _ in gains]
        axis.barh(
            places, [gain.mean for gain, _ in gains], xerr=widths, color=f"C{turn}", label=title, error_kw={"lw": 0.8}
        )
        for where, (_, name) in zip(places, gains, strict=True):
            axis.text(-0.005, where, name, ha="right", va="center", fontsize=6)
        place += len(gains)
    axis.axvline(0, color="black", lw=0.8)
    axis.axvline(-0.02, color="black", lw=0.6, ls=":")
    axis.set_yticks([])
    axis.set_xlabel(f"gain of router {cell.router} over no router, in accuracy (dotted: −.02)")
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    axis.spines[["top", "right", "left"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
