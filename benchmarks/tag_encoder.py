"""What tags mean to a sentence encoder before and after `poise tag-encoder`: `python benchmarks/tag_encoder.py FOLDER`.

For every score encoding and seed the recipe `tag_encoder` runs on a folder of annotated photos; a seed draws which
photos are held out, the scores of the tags and the false tags. Printed are means over the seeds with the lowest and the
highest: cosines of anchors to their own and to foreign captions, and recall@1 from tags to captions. Finished runs are
kept in OUTPUT and not repeated; `curves.png` shows how the cosines move.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from transformers import logging as transformers_logging

from poise.training.tag_encoder.recipe import load_tag_encoder_recipe
from poise.training.tag_encoder.stage import run_tag_encoder

ENCODINGS = ("attention_bias", "text", "embedding")
COLORS = {"attention_bias": "#1b7f79", "text": "#c4661f", "embedding": "#6a4c93"}
PUBLISHED = {"anchor_positive_cosine": 0.79, "anchor_negative_cosine": 0.17}
ROWS = {
    "anchor_positive_cosine": "cosine to the own caption",
    "anchor_negative_cosine": "cosine to foreign captions",
    "triplet_accuracy": "own caption nearer",
    "tag_to_caption_recall@1": "recall@1 tags → caption",
    "tag_to_caption_recall@5": "recall@5 tags → caption",
    "caption_to_tag_recall@1": "recall@1 caption → tags",
}
Results = dict[str, list[dict[str, Any]]]


def one_run(args: argparse.Namespace, encoding: str, seed: int) -> dict[str, Any]:
    """Results of one run, from OUTPUT where it is there already."""
    path = Path(args.output) / f"{encoding}-{args.negatives}-{args.positive}-{seed}.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    overrides = {
        "data.train": args.folder, "score_encoding": encoding, "negatives": args.negatives, "positive": args.positive,
        "seed": seed, "data_seed": seed, "disable_tqdm": False,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        recipe = load_tag_encoder_recipe(args.config, {**overrides, "output_dir": folder})
        _, results = run_tag_encoder(recipe)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


def spread(values: list[float]) -> str:
    return f"{np.mean(values):.3f} [{min(values):.3f}, {max(values):.3f}]"


def table(results: Results) -> str:
    """Means over the seeds before and after, with lowest and highest, and the gain of the same seed."""
    lines = []
    for encoding, runs in results.items():
        first = runs[0]
        lines.append(
            f"{encoding}, {len(runs)} seeds, {first['train']} photos to learn from, {first['held_out']} held out, "
            f"{first['curve'][-1]['step']:.0f} steps"
        )
        lines.append(f"  {'':<28}{'before':<24}{'after':<24}gain of the same seed")
        for key, name in ROWS.items():
            before, after = [r["curve"][0][key] for r in runs], [r["curve"][-1][key] for r in runs]
            gains = [b - a for a, b in zip(before, after, strict=True)]
            lines.append(f"  {name:<28}{spread(before):<24}{spread(after):<24}{spread(gains)}")
        found = [[entry["tag_to_caption_recall@1"] for entry in run["curve"]] for run in runs]  # (R, E)
        lines.append(f"  recall@1 before and after every epoch: {' '.join(f'{m:.3f}' for m in np.mean(found, axis=0))}")
    return "\n".join(lines)


def draw(results: Results, path: Path) -> None:
    """Cosines over the steps beside recall@1 before and after."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), width_ratios=(1.7, 1), layout="constrained")
    for encoding, runs in results.items():
        steps = [entry["step"] for entry in runs[0]["curve"]]
        for key, style in (("anchor_positive_cosine", "-"), ("anchor_negative_cosine", "--")):
            values = np.array([[entry[key] for entry in run["curve"]] for run in runs])  # (R, E)
            left.plot(steps, values.mean(axis=0), style, color=COLORS[encoding], linewidth=1.8)
            left.fill_between(steps, values.min(axis=0), values.max(axis=0), color=COLORS[encoding], alpha=0.12, lw=0)
    for key, value in PUBLISHED.items():
        left.axhline(value, color="#555555", linewidth=1, linestyle=":")
        name = "own" if "positive" in key else "foreign"
        left.text(
            steps[-1], value + 0.012, f"Dynamic LION, {name}: {value:.2f}", ha="right", fontsize=8, color="#555555"
        )
    left.plot([], [], "-", color="#333333", label="own caption")
    left.plot([], [], "--", color="#333333", label="foreign captions")
    for encoding in results:
        left.plot([], [], color=COLORS[encoding], linewidth=4, label=f"scores as {encoding.replace('_', ' ')}")
    left.set(xlabel="optimizer step", ylabel="cosine to the anchor, held-out photos", ylim=(-0.05, 1))
    left.legend(frameon=False, fontsize=8, loc="upper left", ncols=2)
    left.set_title("Anchor and captions (mean and range over seeds)", fontsize=10)
    for place, (encoding, runs) in enumerate(results.items()):
        pairs = np.array([[run["curve"][i]["tag_to_caption_recall@1"] for i in (0, -1)] for run in runs])  # (R, 2)
        ends = (2.4 * place, 2.4 * place + 1)
        right.plot(ends, pairs.T, color=COLORS[encoding], alpha=0.4, linewidth=1, marker="o", markersize=4)
        right.plot(ends, pairs.mean(axis=0), color=COLORS[encoding], linewidth=2.6)
    right.set_xticks(
        [2.4 * place + end for place in range(len(results)) for end in (0, 1)],
        ["before", "after"] * len(results),
        fontsize=8,
    )
    right.set(ylabel="recall@1, tags → caption", ylim=(0, 1))
    right.set_title("Finding the own caption (a line is a seed)", fontsize=10)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", help="photos with captions.jsonl and tags.jsonl")
    parser.add_argument("--config", default="tag_encoder", metavar="RECIPE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--encodings", nargs="+", choices=ENCODINGS, default=list(ENCODINGS))
    parser.add_argument("--negatives", default="random", help="random or semi_hard")
    parser.add_argument("--positive", default="centroid", help="centroid or mean")
    parser.add_argument("--output", default="outputs/tag_encoder_seeds", metavar="FOLDER")
    args = parser.parse_args()
    transformers_logging.set_verbosity_error()
    results: Results = {}
    for encoding in args.encodings:
        results[encoding] = [one_run(args, encoding, seed) for seed in args.seeds]
    print(table(results))
    path = Path(args.output) / "curves.png"
    draw(results, path)
    print(f"plot: {path}")


if __name__ == "__main__":
    main()
