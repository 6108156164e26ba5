"""Which failure each decoding-time method helps and harms, beside routers, on the same questions.

    python benchmarks/decoding.py outputs/demo/none/model outputs/demo/reliability/model --samples 150

Rows are models and methods, columns failures of image and tags at one severity; a cell is the VQA accuracy, marked + or
- where the difference to the same model decoded greedily, question by question, lies outside of 0 by its 95 % interval.
What is there already is not asked again.
"""

import argparse
import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
from transformers.utils import logging

from poise.command_line import main as poise
from poise.evaluation.intervals import bootstrap_interval
from poise.modeling.decoding_methods import METHODS

FAILURES = ("noise", "blur", "occlusion", "swapped_image", "tags_invented", "tags_shuffled")


def answers(model: str, method: str, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Accuracy of each question by failure: failure -> source -> accuracy."""
    folder = arguments.output / "-".join(Path(model).parts[-2:]) / method
    words = ["robustness", model, "--data", arguments.data, "--samples", str(arguments.samples), "--decoding", method]
    words += ["--degradations", *FAILURES, "--severities", str(arguments.severity), "--max-new-tokens", "6"]
    words += ["--resamples", "0", "--batch-size", "32", "--output", str(folder)]
    with redirect_stdout(StringIO()):  # its own table
        if not (folder / "robustness.json").is_file() and poise(words) != 0:
            raise SystemExit(1)
    found: dict[str, dict[str, float]] = {}
    for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found.setdefault(row["degradation"], {})[row["source"]] = next(iter(row["scores"].values()))
    return found


def cell(scores: dict[str, float], greedy: dict[str, float]) -> str:
    """A mean, and whether it differs from greedy decoding of the same questions."""
    gain = np.array([scores[source] - greedy[source] for source in scores])
    low, high = bootstrap_interval(gain)
    mark = "+" if low > 0 else "-" if high < 0 else " "
    return f"{np.mean(list(scores.values())):.2f}{mark}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), help="default: all")
    parser.add_argument("--data", default="scenes:test,tasks=vqa", metavar="SOURCE")
    parser.add_argument("--samples", type=int, default=150, metavar="N", help="questions (default 150)")
    parser.add_argument("--severity", type=int, default=4, metavar="N", help="of the failures (default 4)")
    parser.add_argument("--output", type=Path, default=Path("outputs/decoding_bench"), metavar="FOLDER")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    print(f"{'':<28}{'clean':>9}" + "".join(f"{name.removesuffix('_image'):>15}" for name in FAILURES))
    for model in arguments.models:
        greedy = answers(model, "greedy", arguments)
        for method in dict.fromkeys(("greedy", *arguments.methods)):
            found = answers(model, method, arguments)
            label = f"{Path(model).parts[-2] if Path(model).name == 'model' else Path(model).name}, {method}"
            print(f"{label:<28}{cell(found['clean'], greedy['clean']):>9}"
                  + "".join(f"{cell(found[name], greedy[name]):>15}" for name in FAILURES), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
