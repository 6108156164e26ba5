"""One LoRA against task-routed adapters of the same size, on drawn scenes with captions, questions and boxes.

    python benchmarks/adapters.py --output outputs/adapters --steps 300 --seeds 0 1 2

Each run fine-tunes the tiny backbones on batches of all three tasks and is scored on scenes it has not seen. A run that
is finished is not repeated. The table gives every seed: a few short runs have no error bars worth the name.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from transformers import logging

from poise.evaluation.generation_evaluator import GenerationEvaluator
from poise.processing.scenes.scenes import Scenes
from poise.training.sft.checkpoints import load_trained
from poise.training.sft.recipe import load_recipe
from poise.training.sft.stage import run_sft

# The same number of adapter weights: one of rank 16, or two of rank 8.
ARMS: dict[str, dict[str, Any]] = {
    "one LoRA, rank 16": {"lora.r": 16, "lora.alpha": 32},
    "task-routed, 2 × rank 8": {"lora.r": 8, "lora.alpha": 16, "lora.task_routed": True},
}
TASKS = ("caption", "vqa", "grounding")
# All that is new starts from noise and learns fast: what is compared is how far adapters come in a few steps.
FROM_NOISE = {
    "align_pictures": 0,
    "stream_dropout": 0.1, "learning_rates.soft_prompt": None, "learning_rates.adapters": 3e-3,
}  # fmt: skip
SHOWN = {"vqa_accuracy": "VQA accuracy", "caption_cider_d": "CIDEr-D", "grounding_accuracy@0.5": "REC acc@0.5",
         "grounding_mean_iou": "mean IoU"}  # fmt: skip


def run(arm: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Scores of one run: trained, or read from where an earlier call left them."""
    folder = Path(args.output) / f"{list(ARMS).index(arm)}_{seed}"
    results = folder / "results.json"
    if results.is_file():
        return json.loads(results.read_text(encoding="utf-8"))
    recipe = load_recipe(
        "demo",
        {
            "data.scenes": {"size": 30_000, "tasks": list(TASKS), "prior_strength": 0.5}, "data.evaluation": None,
            "max_steps": args.steps, "per_device_train_batch_size": args.batch_size, "training.seed": seed,
            "training.output_dir": str(folder), "training.disable_tqdm": not args.progress, "logging_steps": 100,
            **FROM_NOISE, **ARMS[arm],
        },
    )  # fmt: skip
    model_folder, metrics = run_sft(recipe)
    model, processor = load_trained(model_folder)
    records = Scenes("test", size=args.samples, seed=seed, tasks=TASKS)
    evaluator = GenerationEvaluator(batch_size=64, max_new_tokens=24, resamples=0, progress=args.progress)
    scores = evaluator(model, processor, records)
    routed = model.model.task_adapters
    found = {
        "scores": {name: scores[name] for name in SHOWN},
        "adapters": metrics["parameters"]["adapters"],
        "seconds": metrics["seconds"],
        "mixing": None if routed is None else routed.mixing_table(),
    }
    results.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def table(found: dict[str, list[dict[str, Any]]], seeds: list[int]) -> str:
    """Mean over seeds, and every seed in brackets."""
    lines = [f"{'adapters':<26}{'weights':>9}  " + "  ".join(f"{name:<25}" for name in SHOWN.values()).rstrip()]
    for arm, runs in found.items():
        cells = []
        for name in SHOWN:
            values = [one["scores"][name] for one in runs]
            cells.append(f"{sum(values) / len(values):.3f} ({' '.join(f'{value:.3f}' for value in values)})")
        lines.append((f"{arm:<26}{runs[0]['adapters']:>9,}  " + "  ".join(f"{cell:<25}" for cell in cells)).rstrip())
    mixing = [one["mixing"] for runs in found.values() for one in runs if one["mixing"]]
    lines += ["", f"mixing weights of the task-routed runs, mean over blocks and {len(mixing)} seeds:"]
    for task in mixing[0] if mixing else ():
        means = {name: sum(m[task][name] for m in mixing) / len(mixing) for name in mixing[0][task]}
        lines.append(f"  {task:<10}" + "  ".join(f"{name} adapter {mean:5.2f}" for name, mean in means.items()))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="outputs/adapters", help="where runs are kept (default %(default)s)")
    parser.add_argument("--steps", type=int, default=300, help="training steps a run (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=24, help="records a step (default %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default 0 1 2")
    parser.add_argument("--samples", type=int, default=300, help="test records a run (default %(default)s)")
    parser.add_argument("--progress", action="store_true", help="show bars")
    args = parser.parse_args()
    logging.set_verbosity_error()
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    for seed in args.seeds:
        for arm in ARMS:
            found[arm].append(run(arm, seed, args))
            print(f"seed {seed}, {arm}: {found[arm][-1]['seconds']:.0f} s of training", flush=True)
    print()
    print(table(found, args.seeds))


if __name__ == "__main__":
    main()
