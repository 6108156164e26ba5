"""The study in words and pictures: `results.md` beside a folder with plots and the raw figures."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from poise.training.study_plan import AXES, Cell, StudyPlan
from poise.training.study_plots import draw_conditions, draw_gains
from poise.training.study_summary import (
    IMAGE_FAILS,
    TAGS_FAIL,
    Estimate,
    Run,
    cell_of,
    estimates,
    gains,
    judging,
    scores,
)

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
