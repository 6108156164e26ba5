"""What the commands that examine a model share: options for the model, its data and its decoding, and how they end."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

# Spelled out, for the help must not wait for torch; a test compares them with the table of methods.
METHODS = ("greedy", "cut_off", "shifted_yes", "vcd", "m3id", "cfg", "pai", "mad")
VQA_VIEWS = ("pope", "multiple_choice", "hallusionbench", "mmstar")  # ways to look at vqa records
TASKS = ("caption", "vqa", "grounding", *VQA_VIEWS)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, ... (default: cuda if there is one)")
    parser.add_argument("--dtype", default="auto", metavar="NAME", help="of the weights (default: as they are stored)")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that the repository brings along")


def chosen_model(arguments: argparse.Namespace, device: str | None = None) -> tuple[Any, Any]:
    """Model in evaluation mode, and its processor; `device` in place of the one asked for. Raises as [`load_model`]."""
    from poise.model_loading import load_model

    place, remote = device or arguments.device, arguments.trust_remote_code
    return load_model(arguments.model, place, arguments.dtype, trust_remote_code=remote)


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


def check_at_least(arguments: argparse.Namespace, least: int, *names: str) -> None:
    """Raises a `ValueError` for the first of these numbers that is given and smaller."""
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least {least}")


def calibration_source(arguments: argparse.Namespace) -> str:
    """Records that mean tokens are taken of: other scenes than the asked ones, or the data themselves."""
    data = arguments.data
    return arguments.calibration or ("scenes:validation" if data.partition(":")[0] == "scenes" else data)


def end_with(found: dict[str, Any], text: str, path: Path, as_json: bool) -> None:
    """Writes what was found as JSON, and prints it, as text or as it was written."""
    from poise.evaluation.whole_files import write_whole

    written = json.dumps(found, indent=2, ensure_ascii=False)
    write_whole(path, written + "\n")
    sys.stdout.write((written if as_json else text) + "\n")
