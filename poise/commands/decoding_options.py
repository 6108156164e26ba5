"""Options of the commands that let a model answer: how it decodes, and what becomes of tags where it has no place."""

import argparse
from typing import Any

# Spelled out, for the help must not wait for torch; a test compares them with the table of methods.
METHODS = ("greedy", "cut_off", "shifted_yes", "vcd", "m3id", "cfg", "pai", "mad")


def add_decoding_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--decoding",
        choices=METHODS,
        default="greedy",
        help="a decoding-time method, for any VLM: VCD, M3ID, image classifier-free guidance, PAI, MAD, or a control "
        "(default greedy)",
    )
    parser.add_argument(
        "--strength",
        nargs="+",
        default=[],
        metavar="NAME=NUMBER",
        help="of the method, in place of the published ones, such as alpha=0.5",
    )
    parser.add_argument(
        "--tags",
        choices=("words", "none"),
        default="words",
        help="what becomes of tags where the model has no stream for them: words before the question, or nothing",
    )


def chosen_decoding(arguments: argparse.Namespace) -> dict[str, Any]:
    """Arguments of [`GenerationEvaluator`].

    Raises:
        ValueError: a strength that the method does not have, or that is no number.
    """
    from poise.evaluation.decoding import Decoding, parse_strengths

    decoding = Decoding(arguments.decoding, parse_strengths(arguments.strength), arguments.seed)
    return {"decoding": decoding, "tag_words": arguments.tags == "words"}


def conditions(evaluator: Any, model: Any, processor: Any, record: Any) -> dict[str, Any]:
    """What a result must state to be printed again: one prompt as it was written, the decoding, the versions."""
    from poise.training.run_files import versions

    return {
        "prompt": evaluator.prompt_text(model, processor, record),
        "decoding": evaluator.decoding.describe(),
        "versions": versions(),
    }
