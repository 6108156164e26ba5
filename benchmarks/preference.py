"""Wrong answers before and after `poise preference`: `python benchmarks/preference.py BEFORE AFTER`.

Both models are asked the same questions about colours of drawn scenes. Printed per condition: accuracy, the share of
answers that are wrong and just what the prior says, and the share of other wrong answers, with 95 % bootstrap
intervals; and for both models together the change, over the same scenes. In the conditions whose colours contradict the
prior every answer from the prior is wrong.
"""

import argparse
from typing import Any

import numpy as np
from transformers import logging as transformers_logging

from poise.evaluation.intervals import bootstrap_interval
from poise.evaluation.robustness.conditions import DEMO_CONDITIONS
from poise.training.preference.prior_following import PriorFollowing, answer_kinds
from poise.training.sft.checkpoints import load_trained

NAMES = ("accuracy", "as the prior", "other wrong")


def measured(model: Any, processor: Any, records: list, batch_size: int) -> np.ndarray:
    """Right, as the prior, otherwise wrong: (N, 3) of 0 and 1."""
    rows: list[dict] = []
    evaluator = PriorFollowing(max_new_tokens=6, batch_size=batch_size, progress=False)
    evaluator.score = lambda found: rows.extend(found) or {}  # type: ignore[method-assign]
    evaluator(model, processor, records)
    return np.array([answer_kinds(row) for row in rows], dtype=float)


def cell(values: np.ndarray) -> str:
    low, high = bootstrap_interval(values)
    return f"{values.mean():6.3f} [{low:6.3f}, {high:6.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("before", help="model folder")
    parser.add_argument("after", help="model folder")
    parser.add_argument("--samples", type=int, default=300, help="scenes per condition")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes")
    parser.add_argument("--conditions", nargs="+", help="among the demo's (default: all of them)")
    parser.add_argument("--batch-size", type=int, default=64)
    args = parser.parse_args()
    transformers_logging.set_verbosity_error()
    models = [load_trained(folder) for folder in (args.before, args.after)]
    conditions = [c for c in DEMO_CONDITIONS if not args.conditions or c.name in args.conditions]
    print(f"{'condition':<16}{'answers':<14}{'before':<26}{'after':<26}change, same scenes")
    for condition in conditions:
        scenes = condition.scenes(args.samples, args.seed, tasks=("vqa",), question_types=("color",))
        records = [scenes[index] for index in range(args.samples)]
        before, after = (measured(*model, records, args.batch_size) for model in models)
        for place, name in enumerate(NAMES):
            columns = (before[:, place], after[:, place], after[:, place] - before[:, place])
            label = condition.name if place == 0 else ""
            print(f"{label:<16}{name:<14}" + "".join(f"{cell(values):<26}" for values in columns).rstrip(), flush=True)


if __name__ == "__main__":
    main()
