"""`poise evaluate MODEL --data ...`: generates answers, scores them, writes predictions and scores."""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# `(name) -> (model, processor)` for what only a room above can load, such as a run with adapters, and `None` for the
# rest. The face of the package puts it here.
load_run: Callable[[str], tuple[Any, Any] | None] | None = None

TASKS = ("caption", "vqa", "grounding", "pope", "multiple_choice")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="poise evaluate",
        description="Score a model's answers to task records, with bootstrap intervals.",
        epilog="example: poise evaluate outputs/demo/model --data scenes:prior_broken --group-by question_type",
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
        help="score only this; pope and multiple_choice are ways to look at vqa records (default: each record's task)",
    )
    parser.add_argument("--output", metavar="FOLDER", help="default: outputs/evaluate/MODEL/SOURCE-TASK")
    parser.add_argument("--restart", action="store_true", help="forget predictions that the folder already holds")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N records")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="records per batch (default 16)")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="longest answer (default: by task)")
    parser.add_argument("--num-beams", type=int, default=1, metavar="N", help="beams of the search (default 1: greedy)")
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
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the bootstrap (default 0)")
    parser.add_argument(
        "--tagger", metavar="NAME", help="whose tags replace the records': a dual encoder's folder, or a file of tags"
    )
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, ... (default: cuda if there is one)")
    parser.add_argument("--dtype", default="auto", metavar="NAME", help="of the weights (default: as they are stored)")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that the repository brings along")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def main(argv: list[str]) -> int:
    """Prints the scores. Returns 0; what can go wrong is raised."""
    arguments = build_parser().parse_args(argv)
    from poise.evaluation.data_sources import load_data_source
    from poise.evaluation.generation_evaluator import GenerationEvaluator
    from poise.evaluation.prediction_log import write_whole
    from poise.evaluation.score_table import score_table

    # Everything that a slip could spoil comes before the model, which may take minutes to load.
    folder = Path(arguments.output or _default_folder(arguments))
    evaluator = GenerationEvaluator(
        task=arguments.task,
        max_new_tokens=arguments.max_new_tokens,
        thresholds=arguments.iou,
        group_by=arguments.group_by,
        cluster_by=arguments.cluster_by,
        tagger=arguments.tagger,
        generation={} if arguments.num_beams == 1 else {"num_beams": arguments.num_beams},
        resamples=arguments.resamples,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
        output_dir=folder,
        restart=arguments.restart,
        progress=sys.stderr.isatty(),
    )
    records = load_data_source(arguments.data, arguments.limit)
    if arguments.tagger is not None:
        from poise.processing.tagged_records import TaggedRecords, load_tagger

        records = TaggedRecords(records, load_tagger(arguments.tagger))
    model, processor = load_model(
        arguments.model, arguments.device, arguments.dtype, trust_remote_code=arguments.trust_remote_code
    )
    metrics = evaluator(model, processor, records)

    summary = {
        "model": arguments.model,
        "data": arguments.data,
        "task": arguments.task,
        **({} if arguments.tagger is None else {"tagger": arguments.tagger}),
        "primary_metric": evaluator.primary_metric,
        "greater_is_better": evaluator.greater_is_better,
        "metrics": metrics,
    }
    written = json.dumps(summary, indent=2, ensure_ascii=False)
    write_whole(folder / "metrics.json", written + "\n")
    sys.stdout.write((written if arguments.json else score_table(metrics)) + "\n")
    sys.stderr.write(f"scores in {folder / 'metrics.json'}, predictions in {folder / 'predictions.jsonl'}\n")
    return 0


def load_model(
    name: str, device: str | None = None, dtype: str = "auto", trust_remote_code: bool = False
) -> tuple[Any, Any]:
    """Model in evaluation mode, and its processor.

    Args:
        name (`str`): folder or Hub repository; where `load_run` is set, also a run's folder or a checkpoint.
        device (`str`, *optional*, defaults to `"cuda"` where there is one, else `"cpu"`); a quantized model stays where
            its library puts it.
        dtype (`str`, *optional*, defaults to `"auto"`): of the weights; `"auto"` is as they are stored.

    Raises:
        ValueError: a folder without a model, or one that takes no images.
    """
    import torch
    from transformers import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        AutoConfig,
        AutoModelForImageTextToText,
        AutoProcessor,
    )

    loaded = load_run(name) if load_run is not None else None
    if loaded is not None:
        model, processor = loaded
        model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return (model if dtype == "auto" else model.to(getattr(torch, dtype))).eval(), processor
    folder = Path(name)
    is_adapter = (folder / "adapter_config.json").is_file()
    if folder.is_dir() and not is_adapter and not (folder / "config.json").is_file():
        raise ValueError(f"model={name!r} is a folder without config.json; name the folder of a saved model.")
    if not is_adapter:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
        if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not getattr(config, "auto_map", None):
            raise ValueError(
                f"model={name!r} is a {config.model_type!r} model, which takes no images; name one that does."
            )
    processor = AutoProcessor.from_pretrained(name, trust_remote_code=trust_remote_code)
    model = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype, trust_remote_code=trust_remote_code)
    if not getattr(model, "is_quantized", False):
        model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return model.eval(), processor


def _default_folder(arguments: argparse.Namespace) -> Path:
    from poise.evaluation.data_sources import data_name

    data = data_name(arguments.data).removesuffix(".jsonl")
    parts = [Path(arguments.model).name, f"{data}-{arguments.task or 'tasks'}"]
    return Path("outputs", "evaluate", *(re.sub(r"[^\w.=-]+", "-", part) for part in parts))
