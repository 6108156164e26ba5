"""The grid of the study as work for several processes: one JSON file a run, finished runs are never repeated."""

import json
import logging
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import logging as transformers_logging

from ...evaluation.whole_files import write_whole
from ..feature_cache.cache import fingerprint
from ..recipe_loading import recipe_path
from .plan import Cell, StudyPlan
from .run import StudyInputs, run_cell

logger = logging.getLogger(__name__)
CODE = ("modeling", "processing", "evaluation", "training")  # packages that a run is made by
REPORTED = ("grids", "seeds", "held_out")  # fields of a plan that no single run depends on
Run = dict[str, Any]


class Worker:
    """What a process of the pool keeps between runs: the inputs of each prompt that it has met."""

    current: "Worker"

    def __init__(self, plan: StudyPlan, folder: Path):
        self.plan, self.folder, self.key = plan, folder, run_key(plan)
        self.inputs: dict[str, StudyInputs] = {}

    def run(self, cell: Cell, seed: int) -> Run:
        if cell.prompt not in self.inputs:
            self.inputs[cell.prompt] = StudyInputs(self.plan, cell.prompt, self.folder / "features")
        result = {**run_cell(self.plan, cell, seed, self.inputs[cell.prompt]), "key": self.key}
        write_run(self.folder, cell, seed, result)
        return result


def _start(plan: StudyPlan, folder: Path) -> None:
    # Models this small gain nothing from a second thread, and the parent's bar owns the terminal.
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger().setLevel(logging.WARNING)
    Worker.current = Worker(plan, folder)


def _work(cell: Cell, seed: int) -> Run:
    return Worker.current.run(cell, seed)


def run_key(plan: StudyPlan) -> dict[str, str]:
    """
    What a run depends on besides its cell and seed, as two hashes: `settings` (the plan and its recipe's text) and
    `code` (every Python file that trains, asks or measures).
    """
    settings = {field.name: getattr(plan, field.name) for field in fields(plan) if field.name not in REPORTED}
    settings["conditions"] = [asdict(condition) for condition in plan.conditions]
    settings["scene_seed"] = plan.scene_seed
    recipe = Path(recipe_path(plan.recipe)).read_text(encoding="utf-8")
    root = Path(__file__).resolve().parents[2]
    sources = [path for package in CODE for path in sorted((root / package).rglob("*.py"))]
    return {
        "settings": fingerprint(settings, recipe),
        "code": fingerprint([[path.name, path.read_bytes()] for path in sources]),
    }


def run_file(folder: Path, cell: Cell, seed: int) -> Path:
    return folder / "runs" / f"{cell.run_name(seed)}.json"


def write_run(folder: Path, cell: Cell, seed: int, result: Run) -> None:
    """The result of a run, complete or not there at all."""
    path = run_file(folder, cell, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(result, indent=1) + "\n")


def finished_runs(plan: StudyPlan, folder: Path) -> dict[tuple[Cell, int], Run]:
    """
    Runs of this plan that a folder holds already.

    Raises:
        ValueError: a run there was made with other settings or by other code.
    """
    found, key = {}, run_key(plan)
    for cell, seed in runs_of(plan):
        path = run_file(folder, cell, seed)
        if not path.is_file():
            continue
        run = json.loads(path.read_text(encoding="utf-8"))
        different = [name for name, value in key.items() if run.get("key", {}).get(name) != value]
        if different:
            raise ValueError(
                f"{path} was made with other {' and '.join(different)} than the plan's: choose another --output, or "
                "delete the folder"
            )
        found[cell, seed] = run
    return found


def runs_of(plan: StudyPlan) -> Iterator[tuple[Cell, int]]:
    """Every (cell, seed): the first grid of the plan for all seeds, then the others, each seed by seed."""
    for cells in plan.grids:
        for seed in plan.seeds:
            for cell in cells:
                yield cell, seed


def run_grid(plan: StudyPlan, folder: Path, jobs: int) -> list[Run]:
    """
    Do what is missing of the grid, `jobs` runs at a time, and return all runs in the plan's order.

    Raises:
        RuntimeError: a run failed; those that were finished stay.
    """
    done = finished_runs(plan, folder)
    missing = [(cell, seed) for cell, seed in runs_of(plan) if (cell, seed) not in done]
    context = multiprocessing.get_context("spawn")
    bar = tqdm(total=len(plan.cells) * len(plan.seeds), initial=len(done), desc="study", unit="run", disable=None)
    with bar, ProcessPoolExecutor(jobs, mp_context=context, initializer=_start, initargs=(plan, folder)) as pool:
        waiting = {pool.submit(_work, cell, seed): (cell, seed) for cell, seed in missing}
        try:
            for future in as_completed(waiting):
                done[waiting[future]] = future.result()
                bar.update()
        except BaseException:
            # What runs cannot be stopped in the middle, but nothing new begins.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [done[key] for key in runs_of(plan)]
