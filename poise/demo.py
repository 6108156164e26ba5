"""`poise demo`: in five minutes on two cores from tiny backbones to a measured model in a publishable folder.

Two models are fine-tuned on drawn scenes in which shape predicts colour: one without a router, one with. Both are asked
the same questions while image or tags fail in ways that training never showed. The routed one is written as a
publishable folder, and loaded from there by a new process that has plain transformers and no Poise.
"""

import argparse
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import logging as transformers_logging

from poise.evaluation.condition_table import evaluate_conditions, table_text
from poise.evaluation.conditions import DEMO_CONDITIONS, condition_named
from poise.evaluation.prediction_log import write_whole
from poise.hub_cards.card.data import CardData
from poise.hub_cards.publishing.card_collector import CardCollector
from poise.hub_cards.publishing.publishable_folder import write_publishable_folder
from poise.hub_cards.publishing.run_folder import CONDITIONS_FILE, RunFolder
from poise.hub_cards.publishing.self_check import check_loads_without_poise
from poise.processing.scenes import COLORS
from poise.training.checkpoints import load_trained
from poise.training.progress_report import ProgressReport, Report
from poise.training.recipe import Recipe, load_recipe
from poise.training.sft import run_sft
from poise.training.side_by_side import run_side_by_side

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
    recipe: Recipe, samples: int, report: Report
) -> tuple[Path, list[dict[str, Any]], dict[str, Any]]:
    """
    Fine-tune as the recipe says and measure under every condition: (model folder, rows, training metrics).

    The rows also lie in the run's folder, where `poise publish` finds them.
    """
    folder, metrics = run_sft(recipe, callbacks=[ProgressReport(report), CardCollector(recipe)])
    model, processor = load_trained(folder)
    rows = evaluate_conditions(
        model,
        processor,
        DEMO_CONDITIONS,
        size=samples,
        seed=recipe.training["seed"],
        report=lambda done, total: report("measuring", done, total),
        question_types=recipe.data["scenes"]["question_types"],
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
    seed = next(iter(runs.values())).recipe.training["seed"]
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
    """Three questions about drawn scenes, with pictures as files, for a process that has no Poise."""
    folder.mkdir(parents=True, exist_ok=True)
    scenes = condition_named("clean").scenes(3, recipe.training["seed"], tasks=("vqa",), question_types=("color",))
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
    jobs = {f"router {router}": (train_and_measure, (recipe, args.samples)) for router, recipe in recipes.items()}
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
    for name in ("steps", "samples"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name} is {getattr(args, name)}; it must be at least 1")
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
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"\n{table_text(rows)}\n\nmodel:  {published}\nreport: {output / 'report.png'}\ntook {seconds:.0f} s")
    return 0
