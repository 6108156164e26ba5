"""`poise study`: every router × prompt × language model over seeds, trained, measured, compared and written down."""

import argparse
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from poise.training.study.grid import finished_runs, run_grid
from poise.training.study.plan import StudyPlan, load_plan
from poise.training.study.report import write_results

logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="poise study",
        description="Train and measure a grid of routers, prompts and language models over seeds, and report.",
        epilog="What is finished is kept: the same command goes on where it was stopped.",
    )
    parser.add_argument("--config", default="study", metavar="PLAN", help="a plan file, or the name of a shipped one")
    parser.add_argument("--output", default="outputs/study", help="folder for runs and cached features")
    parser.add_argument("--results", default=None, metavar="DIR", help="folder for results.md (default: --output)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time, one core each (default 2)")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the plan's")
    parser.add_argument("--steps", type=int, help="instead of the plan's")
    parser.add_argument("--samples", type=int, help="questions per condition, instead of the plan's")
    parser.add_argument("--report-only", action="store_true", help="train nothing, report what is there")
    return parser


def runs_for_report(plan: StudyPlan, folder: Path) -> list[dict[str, Any]]:
    """
    The finished runs of those seeds for which the first grid is complete, so that cells are compared on the same seeds.
    """
    found = finished_runs(plan, folder)
    whole = [seed for seed in plan.seeds if all((cell, seed) in found for cell in plan.grids[0])]
    if not whole:
        raise ValueError(
            f"--report-only: {folder} holds {len(found)} of {len(plan.cells) * len(plan.seeds)} runs, and no seed for "
            "which the first grid is complete; run `poise study` first"
        )
    return [found[cell, seed] for seed in whole for cell in plan.cells if (cell, seed) in found]


def main(argv: Sequence[str]) -> int:
    """`poise study [--config PLAN] [--output DIR] [--results DIR] [--jobs N]`."""
    args = build_parser().parse_args(list(argv))
    if args.jobs < 1:
        raise ValueError(f"--jobs={args.jobs} does nothing: use 1 or more")
    asked = {name: getattr(args, name) for name in ("seeds", "steps", "samples")}
    plan = load_plan(args.config, {name: value for name, value in asked.items() if value is not None})
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    output = Path(args.output)
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {args.output!r} is a file: name a folder")
    started = time.monotonic()
    runs = runs_for_report(plan, output) if args.report_only else run_grid(plan, output, args.jobs)
    command = "poise study" if args.config == "study" else f"poise study --config {Path(args.config).name}"
    page = write_results(plan, runs, Path(args.results or args.output), command)
    print(f"{len(runs)} runs, {time.monotonic() - started:.0f} s\nresults: {page}")
    return 0
