"""`poise demo`: in five minutes on two cores from tiny backbones to a measured model in a publishable folder.

Two models are fine-tuned on drawn scenes in which shape predicts colour: one without a router, one with; at the same
time, for models this small gain nothing from a second thread. Both are asked the same questions while image or tags
fail in ways that training never showed. The routed one is written as a publishable folder, and loaded from there by a
new process that has plain transformers and no Poise.
"""

import argparse
import json
import logging
import multiprocessing
import os
import queue
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers import logging as transformers_logging

from poise.commands.options import check_at_least
from poise.evaluation.robustness.conditions import DEMO_CONDITIONS, condition_named, evaluate_conditions, table_text
from poise.evaluation.whole_files import write_whole
from poise.hub_cards.card.data import CardData
from poise.hub_cards.publishing.card_collector import CardCollector
from poise.hub_cards.publishing.publishable_folder import write_publishable_folder
from poise.hub_cards.publishing.run_folder import CONDITIONS_FILE, RunFolder
from poise.hub_cards.publishing.self_check import check_loads_without_poise
from poise.processing.scenes.layout import COLORS
from poise.training.sft.checkpoints import load_trained
from poise.training.sft.recipe import Recipe, load_recipe
from poise.training.sft.stage import run_sft

Report = Callable[[str, int, int], None]


class ProgressReport(TrainerCallback):
    """Tells `report(stage, done, total)` how far a training is, in place of a bar of its own."""

    def __init__(self, report: Report):
        self.report = report

    def on_train_begin(self, args, state, control, **kwargs):
        self.report("training", 0, state.max_steps)

    def on_step_end(self, args, state, control, **kwargs):
        self.report("training", state.global_step, state.max_steps)


def _child(name: str, work: Callable[..., Any], arguments: tuple, messages: Any) -> None:
    # The parent's bars own the terminal.
    logging.getLogger().setLevel(logging.WARNING)
    try:
        result = work(*arguments, lambda stage, done, total: messages.put((name, "progress", (stage, done, total))))
        messages.put((name, "result", result))
    except Exception as error:  # whatever it is, the parent must hear of it, or it would wait for ever
        messages.put((name, "error", (f"{type(error).__name__}: {error}", traceback.format_exc())))


def run_side_by_side(jobs: Mapping[str, tuple[Callable[..., Any], tuple]]) -> dict[str, Any]:
    """
    Run `work(*arguments, report)` of every job in a process of its own, one for each core at a time, and return the
    results by name.

    Args:
        jobs: `{name: (work, arguments)}`; both must pickle; `work` calls `report(stage, done, total)` now and then.

    Raises:
        RuntimeError: a job failed; the others are ended. The message is the job's own, its traceback is logged.
    """
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    processes = {
        name: context.Process(target=_child, args=(name, work, arguments, messages), daemon=False)
        for name, (work, arguments) in jobs.items()
    }
    width = max(map(len, jobs))
    bars = {name: tqdm(total=1, desc=name.ljust(width), position=place) for place, name in enumerate(jobs)}
    results: dict[str, Any] = {}
    try:
        waiting = list(processes.values())
        while len(results) < len(jobs):
            while waiting and len(jobs) - len(waiting) - len(results) < (os.cpu_count() or 1):
                waiting.pop(0).start()
            name, kind, content = _next_message(messages, processes, results)
            if kind == "progress":
                _show(bars[name], name.ljust(width), *content)
            elif kind == "result":
                results[name] = content
            else:
                logging.getLogger(__name__).debug(content[1])
                raise RuntimeError(f"{name}: {content[0]}")
    finally:
        for bar in bars.values():
            bar.close()
        for process in processes.values():
            if process.pid is not None:
                process.terminate() if process.is_alive() and len(results) < len(jobs) else None
                process.join()
    return {name: results[name] for name in jobs}


def _next_message(messages: Any, processes: Mapping[str, Any], results: Mapping[str, Any]) -> tuple[str, str, Any]:
    """The next message; a process that died without one (killed, out of memory) is an error, not an endless wait."""
    while True:
        try:
            return messages.get(timeout=1.0)
        except queue.Empty:
            for name, process in processes.items():
                if name not in results and process.exitcode is not None and messages.empty():
                    return name, "error", (f"the process ended with exit code {process.exitcode}", "")


def _show(bar: tqdm, name: str, stage: str, done: int, total: int) -> None:
    description = f"{name} {stage}"
    if bar.desc != f"{description}: " or bar.total != total:
        bar.reset(total=total)
        bar.set_description(description)
    bar.n = done
    bar.refresh()


ROUTERS = ("none", "reliability")
EXAMPLES = (("image blank", 3), ("tags invented", 5))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="poise demo", description="Tiny backbones → a measured, publishable VLM.")
    parser.add_argument("--output", default="outputs/demo", help="folder for models, report.png and results.json")
    parser.add_argument("--config", default="demo", metavar="RECIPE", help="recipe to run once for each router")
    parser.add_argument("--steps", type=int, help="training steps (default: the recipe's)")
    parser.add_argument("--routers", nargs="+", default=ROUTERS, help="to compare; the last is published (%(default)s)")
    parser.add_argument("--seed", type=int, help="of scenes, new modules and training (default: the recipe's)")
    parser.add_argument("--samples", type=int, default=300, help="questions per condition (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="give up the models of a former demo")
    return parser


@dataclass
class Run:
    """One fine-tuned model: its recipe, its folder, its rows by condition, its training metrics."""

    recipe: Recipe
    folder: Path
    rows: list[dict[str, Any]]
    metrics: dict[str, Any]


def recipe_for(router: str, args: argparse.Namespace) -> Recipe:
    """The demo's recipe with one router and a folder of its own."""
    overrides: dict[str, Any] = {"router_type": router, "training.output_dir": str(Path(args.output) / router)}
    if args.steps is not None:
        overrides["training.max_steps"] = args.steps
    if args.seed is not None:
        overrides["training.seed"] = args.seed
    return load_recipe(args.config, {**overrides, "training.disable_tqdm": True})


def train_and_measure(
    recipe: Recipe, samples: int, overwrite: bool, report: Report
) -> tuple[Path, list[dict[str, Any]], dict[str, Any]]:
    """
    Fine-tune as the recipe says and measure under every condition: (model folder, rows, training metrics).

    The rows also lie in the run's folder, where `poise publish` finds them.
    """
    folder, metrics = run_sft(recipe, callbacks=[ProgressReport(report), CardCollector(recipe)], overwrite=overwrite)
    model, processor = load_trained(folder)
    rows = evaluate_conditions(
        model,
        processor,
        DEMO_CONDITIONS,
        size=samples,
        seed=recipe.seed,
        report=lambda done, total: report("measuring", done, total),
        question_types=recipe.data.scenes["question_types"],
    )
    measured = CardData()
    measured.add_conditions(rows)
    path = folder.parent / CONDITIONS_FILE
    path.parent.mkdir(exist_ok=True)
    write_whole(path, json.dumps(measured.tables(), indent=2) + "\n")
    return folder, rows, metrics


def publish(run: Run, folder: Path) -> Path:
    """Write a measured model as the folder that one would upload: card, plots, remote code, an answered scene."""
    card_data, _, _ = RunFolder.find(run.recipe.training["output_dir"]).everything_for_the_card()
    model, processor = load_trained(run.folder)
    return write_publishable_folder(model, processor, folder, card_data, run.recipe)


def draw_examples(runs: dict[str, Run]) -> list[dict[str, Any]]:
    """Scenes with what every model answers about them."""
    loaded = {router: load_trained(run.folder) for router, run in runs.items()}
    seed = next(iter(runs.values())).recipe.seed
    examples = []
    for name, index in EXAMPLES:
        scenes = condition_named(name).scenes(index + 1, seed, tasks=("vqa",), question_types=("color",))
        record = scenes[index]
        answers = {router: ask(model, processor, record) for router, (model, processor) in loaded.items()}
        examples.append(
            {"title": name, "image": record["image"], "tags": record["tags"], "question": record["question"],
             "truth": record["answers"][0], "answers": answers}
        )  # fmt: skip
    return examples


def ask(model, processor, record: dict[str, Any]) -> str:
    """The model's answer to one record."""
    from poise.processing import GenerationCollator

    inputs, _ = GenerationCollator(processor, is_encoder_decoder=model.config.is_encoder_decoder)([record])
    tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)  # (1, T)
    start = 0 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    return processor.tokenizer.decode(tokens[0, start:], skip_special_tokens=True).strip()


def questions_for_check(recipe: Recipe, folder: Path) -> list[dict[str, Any]]:
    """Three questions about drawn scenes, with images as files, for a process that has no Poise."""
    folder.mkdir(parents=True, exist_ok=True)
    scenes = condition_named("clean").scenes(3, recipe.seed, tasks=("vqa",), question_types=("color",))
    samples = []
    for index in range(3):
        record = scenes[index]
        path = folder / f"scene_{index}.png"
        record["image"].save(path)
        samples.append(
            {"image": str(path), "question": record["question"], "tags": record["tags"], "truth": record["answers"][0]}
        )
    return samples


def train_side_by_side(args: argparse.Namespace) -> dict[str, Run]:
    """Both runs at the same time, by router."""
    recipes = {router: recipe_for(router, args) for router in args.routers}
    print(f"fine-tuning and measuring {len(recipes)} models, router_type {' and '.join(recipes)}, side by side")
    jobs = {
        f"router {router}": (train_and_measure, (recipe, args.samples, args.overwrite))
        for router, recipe in recipes.items()
    }
    results = run_side_by_side(jobs).values()
    return {router: Run(recipes[router], *result) for router, result in zip(recipes, results, strict=True)}


def ask_without_poise(published: Path, samples: list[dict[str, Any]]) -> None:
    """Load the folder where Poise cannot be imported, and print what it answers."""
    print(f"\nloading {published} in a new process: plain transformers, no Poise")
    for sample, answer in zip(samples, check_loads_without_poise(published, samples), strict=True):
        print(f"  {sample['question']:<36} → {answer:<8} (right: {sample['truth']})")


def main(argv: Sequence[str]) -> int:
    """`poise demo [--output DIR] [--steps N] [--samples N]`."""
    args = build_parser().parse_args(list(argv))
    output = Path(args.output)
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {args.output!r} is a file: name a folder")
    check_at_least(args, 1, "steps", "samples")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    transformers_logging.set_verbosity_error()
    started = time.monotonic()
    runs = train_side_by_side(args)
    rows = {router: run.rows for router, run in runs.items()}
    routed = list(runs.values())[-1]
    published = publish(routed, output / "published")
    ask_without_poise(published, questions_for_check(routed.recipe, output / "questions"))

    # Imported late: matplotlib takes a second that a failing run should not have waited for.
    from poise.demo_report import draw_report

    draw_report(rows, draw_examples(runs), output / "report.png", chance=1 / len(COLORS))
    seconds = round(time.monotonic() - started, 1)
    training = {router: run.metrics for router, run in runs.items()}
    results = {"rows": rows, "training": training, "seconds": seconds}
    write_whole(output / "results.json", json.dumps(results, indent=2) + "\n")
    print(f"\n{table_text(rows)}\n\nmodel:  {published}\nreport: {output / 'report.png'}\ntook {seconds:.0f} s")
    return 0
