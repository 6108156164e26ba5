"""`poise robustness MODEL`: how the answers hold up while the image, the tags or the question are damaged."""

import argparse
import sys
from pathlib import Path

from poise.commands.options import (
    TASKS,
    VQA_VIEWS,
    add_decoding_options,
    add_model_options,
    check_at_least,
    chosen_decoding,
    chosen_model,
    conditions,
    end_with,
)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="poise robustness",
        description="Asks every sample as it is and in degradations of image, tags and question, five "
        "severities each: scores relative to clean, area under the severity curve, with bootstrap intervals. Under "
        "accelerate launch -m poise the processes share the work.",
        epilog="example: poise robustness outputs/demo/reliability/model --samples 300",
    )
    parser.add_argument("model", metavar="MODEL", help="folder of a saved model, or a Hub repository")
    parser.add_argument(
        "--data",
        default="scenes:prior_broken",
        metavar="SOURCE",
        help="JSON lines of task records, a folder of annotated photos, or scenes:SPLIT[,name=value...] "
        "(default %(default)s)",
    )
    parser.add_argument("--task", choices=TASKS, default="vqa", help="which records, and how they are scored (vqa)")
    parser.add_argument(
        "--samples", type=int, default=300, metavar="N", help="records of the task at most (default 300)"
    )
    parser.add_argument(
        "--degradations",
        nargs="+",
        metavar="NAME",
        help="only these, or sets: standard (default), imagenet_c, image_shifts, tag_failures",
    )
    parser.add_argument(
        "--severities", type=int, nargs="+", default=[1, 2, 3, 4, 5], metavar="N", help="of 1 to 5 (default: all)"
    )
    parser.add_argument(
        "--reference", metavar="JSON", help="robustness.json of another model: also print mCE against it"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the damage (default 0)")
    parser.add_argument("--resamples", type=int, default=1000, metavar="N", help="bootstrap resamples; 0 for none")
    parser.add_argument(
        "--output", metavar="FOLDER", help="default: robustness/ in the model's run, else outputs/robustness/MODEL"
    )
    parser.add_argument("--restart", action="store_true", help="forget predictions that the folder already holds")
    parser.add_argument("--batch-size", type=int, default=128, metavar="N", help="records per batch (default 128)")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="longest answer (default: by task)")
    add_decoding_options(parser)
    add_model_options(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def read_reference(path: str) -> dict:
    """What `poise robustness` wrote about another model."""
    from poise.processing.records.json_lines import read_json

    try:
        found = read_json(Path(path))
    except (OSError, ValueError) as problem:
        raise ValueError(f"--reference {path!r} cannot be read: give the robustness.json of another run") from problem
    if not isinstance(found, dict) or "scores" not in found:
        raise ValueError(f"--reference {path!r} is no robustness.json: it holds no scores")
    return found


def main(argv: list[str]) -> int:
    """Prints the table. Returns 0; what can go wrong is raised."""
    arguments = build_parser().parse_args(argv)
    from poise.evaluation.data_sources import data_name, load_data_source
    from poise.evaluation.robustness.corruption_error import corruption_errors
    from poise.evaluation.robustness.evaluator import RobustnessEvaluator
    from poise.evaluation.robustness.report import draw_robustness, robustness_rows, robustness_table
    from poise.evaluation.whole_files import write_whole
    from poise.model_loading import launched, output_folder

    check_at_least(arguments, 1, "max_new_tokens")
    check_at_least(arguments, 0, "resamples")
    process, device = launched(arguments.device)
    reference = None if arguments.reference is None else read_reference(arguments.reference)
    # Everything that a slip could spoil comes before the model, which may take minutes to load.
    method = "" if arguments.decoding == "greedy" else "-".join(["", arguments.decoding, *arguments.strength])
    folder = output_folder(arguments.model, f"robustness{method}", arguments.output)
    evaluator = RobustnessEvaluator(
        task=arguments.task,
        degradations=arguments.degradations,
        severities=arguments.severities,
        degradation_seed=arguments.seed,
        max_new_tokens=arguments.max_new_tokens,
        **chosen_decoding(arguments),
        resamples=arguments.resamples,
        batch_size=arguments.batch_size,
        output_dir=folder,
        restart=arguments.restart,
        shared=True,
        progress=sys.stderr.isatty() and process.is_main_process,
    )
    records = load_data_source(
        arguments.data, arguments.samples, "vqa" if arguments.task in VQA_VIEWS else arguments.task
    )
    model, processor = chosen_model(arguments, device)
    scores = evaluator(model, processor, records)
    if not process.is_main_process:
        return 0

    names, severities = evaluator.degradations, evaluator.severities
    if reference is not None:
        scores = {**scores, **corruption_errors(scores, reference["scores"], names, severities)}
    metric = "cider_d" if arguments.task == "caption" else f"{arguments.task}_accuracy"
    found = {
        "model": arguments.model,
        "data": arguments.data,
        "task": arguments.task,
        "seed": arguments.seed,
        "primary_metric": evaluator.primary_metric,
        "greater_is_better": evaluator.greater_is_better,
        **conditions(evaluator, model, processor, records[0]),
        "scores": scores,
        "robustness": robustness_rows(scores, names, severities, metric, data_name(arguments.data)),
    }
    draw_robustness(scores, names, severities, metric, folder / "robustness.png")
    table = robustness_table(scores, names, severities)
    if reference is not None and "mce" in scores:
        relative = f", relative mCE {scores['relative_mce']:.3f}" if "relative_mce" in scores else ""
        table += f"\nagainst {reference['model']}: mCE {scores['mce']:.3f}{relative} (below 1: fewer errors)"
    write_whole(folder / "robustness.txt", table + "\n")
    end_with(found, table, folder / "robustness.json", arguments.json)
    sys.stderr.write(f"numbers, image and predictions are in {folder}\n")
    return 0
