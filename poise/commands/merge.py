"""`poise merge RUN OUT`: a run with adapters becomes a plain model that transformers loads."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="poise merge",
        description="Merge a run's adapters into its language model, widened first where it was quantized.",
        epilog="example: poise merge outputs/sft outputs/merged",
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder, a checkpoint or a finished model with adapters")
    parser.add_argument("out", metavar="OUT", help="folder to write; must be new or empty")
    parser.add_argument(
        "--base",
        choices=("dequantized", "full"),
        default="dequantized",
        help="what to merge into: what the 4-bit weights stand for (the trained model, default), or the backbone's own "
        "weights in full precision",
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Writes the merged model. Returns 0; what can go wrong is raised before a model is loaded, where it can."""
    arguments = build_parser().parse_args(list(argv))
    out = Path(arguments.out)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ValueError(f"OUT {arguments.out!r} exists and is not empty: name a new folder")
    if not Path(arguments.run).is_dir():
        raise ValueError(f"RUN {arguments.run!r} is no folder: name a folder that poise sft wrote")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from poise.training.run_files import RECIPE_FILE
    from poise.training.sft.checkpoints import export_model, merged_model, trained_folder
    from poise.training.sft.recipe import load_recipe

    folder = trained_folder(arguments.run)
    model, processor = merged_model(folder, arguments.base)
    recipe = load_recipe(str(folder / RECIPE_FILE)) if (folder / RECIPE_FILE).is_file() else None
    advice = f"{folder} is untouched: make room and start again"
    export_model(model, processor, out, recipe, advice=advice)
    logger.info("merged %s into %s", folder, out)
    return 0
