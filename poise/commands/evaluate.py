"""`poise evaluate MODEL --data ...`: generates answers, scores them, writes predictions and scores."""

import argparse
import re
import sys
from pathlib import Path

from poise.commands.options import (
    TASKS,
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
        prog="poise evaluate",
        description="Score a model's answers to task records, with bootstrap intervals. Under accelerate launch "
        "-m poise the processes share the work.",
        epilog="example: poise evaluate outputs/demo/reliability --data scenes:prior_broken --group-by question_type",
    )
    parser.add_argument(
        "model", metavar="MODEL", help="folder of a saved model, a run, a checkpoint, or a Hub repository"
    )
    parser.add_argument(
        "--data",
        required=True,
        metavar="SOURCE",
        help="JSON lines of task records, a folder, a data set on disk or of the Hub (NAME or NAME:SPLIT), a source in "
        "braces as in a recipe, or scenes:SPLIT[,name=value...]",
    )
    parser.add_argument(
        "--task",
        choices=TASKS,
        help="score only this; pope and those behind it are ways to look at vqa records (default: each record's task)",
    )
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        help="default: evaluation/SOURCE-TASK in the model's run, else outputs/evaluation/MODEL/SOURCE-TASK",
    )
    parser.add_argument("--restart", action="store_true", help="forget predictions that the folder already holds")
    parser.add_argument("--samples", type=int, metavar="N", help="only the first N records")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="records per batch (default 16)")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="longest answer (default: by task)")
    parser.add_argument("--num-beams", type=int, default=1, metavar="N", help="beams of the search (default 1: greedy)")
    add_decoding_options(parser)
    parser.add_argument(
        "--iou", type=float, nargs="+", default=[0.1, 0.5, 0.75], metavar="T", help="IoU thresholds of grounding"
    )
    parser.add_argument("--group-by", metavar="FIELD", help="also score by this field of the records' metadata")
    parser.add_argument(
        "--cluster-by",
        default="image_id",
        metavar="FIELD",
        help="metadata field of what belongs together, drawn together by the bootstrap (default image_id)",
    )
    parser.add_argument("--resamples", type=int, default=1000, metavar="N", help="bootstrap resamples; 0 for none")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the bootstrap, and of noise (default 0)")
    parser.add_argument(
        "--tagger", metavar="NAME", help="whose tags replace the records': a dual encoder's folder, or a file of tags"
    )
    add_model_options(parser)
    parser.add_argument(
        "--benchmark",
        metavar="OWNER/DATASET#TASK",
        help="the data are this benchmark of the Hub: its leaderboard reads the score from the published model",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def main(argv: list[str]) -> int:
    """Prints the scores. Returns 0; what can go wrong is raised."""
    arguments = build_parser().parse_args(argv)
    from poise.evaluation.data_sources import load_data_source
    from poise.evaluation.generation_evaluator import GenerationEvaluator
    from poise.evaluation.intervals import score_table
    from poise.model_loading import launched
    from poise.training.atomic_folders import named_when_full

    # Everything that a slip could spoil comes before the model, which may take minutes to load.
    _check_options(arguments)
    process, device = launched(arguments.device)
    folder = _output_folder(arguments)
    evaluator = GenerationEvaluator(
        task=arguments.task,
        max_new_tokens=arguments.max_new_tokens,
        thresholds=arguments.iou,
        group_by=arguments.group_by,
        cluster_by=arguments.cluster_by,
        tagger=arguments.tagger,
        generation={} if arguments.num_beams == 1 else {"num_beams": arguments.num_beams},
        **chosen_decoding(arguments),
        resamples=arguments.resamples,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
        output_dir=folder,
        restart=arguments.restart,
        shared=True,
        progress=sys.stderr.isatty() and process.is_main_process,
    )
    records = load_data_source(arguments.data, arguments.samples, several_images=arguments.tagger is None)
    if arguments.tagger is not None:
        from poise.evaluation.saved_models import loading_errors
        from poise.processing.records.tagged_records import TaggedRecords, load_tagger

        with loading_errors(arguments.tagger, "tagger"):
            records = TaggedRecords(records, load_tagger(arguments.tagger))
    model, processor = chosen_model(arguments, device)
    with named_when_full(folder, "make room; the same command goes on behind the answers that are there"):
        metrics = evaluator(model, processor, records)
    if not process.is_main_process:
        return 0

    summary = {
        "model": arguments.model,
        "data": arguments.data,
        "task": arguments.task,
        **({} if arguments.tagger is None else {"tagger": arguments.tagger}),
        **({} if arguments.group_by is None else {"group_by": arguments.group_by}),
        "primary_metric": evaluator.primary_metric,
        "greater_is_better": evaluator.greater_is_better,
        **({} if arguments.benchmark is None else {"benchmark": arguments.benchmark}),
        **conditions(evaluator, model, processor, records[0]),
        "metrics": metrics,
    }
    with named_when_full(folder / "metrics.json"):
        end_with(summary, score_table(metrics), folder / "metrics.json", arguments.json)
    sys.stderr.write(f"scores in {folder / 'metrics.json'}, predictions in {folder / 'predictions.jsonl'}\n")
    return 0


def _check_options(arguments: argparse.Namespace) -> None:
    check_at_least(arguments, 1, "max_new_tokens", "num_beams")
    check_at_least(arguments, 0, "resamples")
    from poise.hub_cards.card.data import BENCHMARK
    from poise.model_loading import chosen_device, chosen_dtype

    if arguments.benchmark is not None and not BENCHMARK.fullmatch(arguments.benchmark):
        raise ValueError(f"--benchmark {arguments.benchmark!r} must be owner/dataset#task, as in user/scenes#test")
    for threshold in arguments.iou:
        if not 0.0 < threshold <= 1.0:
            raise ValueError(f"--iou {threshold} is no share of an area: write numbers above 0 and at most 1.")
    chosen_device(arguments.device)
    chosen_dtype(arguments.dtype)


def _output_folder(arguments: argparse.Namespace) -> Path:
    """One folder for each source: several evaluations of a run stand side by side on its card."""
    from poise.model_loading import output_folder

    folder = output_folder(arguments.model, "evaluation", arguments.output)
    if arguments.output:
        return folder
    decoding = "" if arguments.decoding == "greedy" else "-".join(["", arguments.decoding, *arguments.strength])
    return folder / re.sub(r"[^\w.=-]+", "-", f"{Path(arguments.data).stem}-{arguments.task or 'tasks'}{decoding}")
