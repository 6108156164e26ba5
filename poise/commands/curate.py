"""`poise curate`: out of a pool of captioned images, the same number for every concept."""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import logging as transformers_logging

RECORDS_FILE = "train.jsonl"
COVERAGE_FILE = "coverage.json"
_SHOWN = 8


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="poise curate",
        description="Keep, of a pool of captioned images, the K nearest to each concept: evenly, in one pass.",
        epilog="example: poise curate --data scenes:train --concepts scenes --text tiny:tag_encoder --keep 20",
    )
    parser.add_argument("--data", required=True, metavar="SOURCE", help="JSON lines of task records, or scenes:SPLIT")
    concepts = parser.add_mutually_exclusive_group(required=True)
    concepts.add_argument("--concepts", metavar="NAMES", help="names: a,b,c, a file (JSON or lines), or 'scenes'")
    concepts.add_argument("--prototypes", metavar="FOLDER", help="a sub-folder of images for each concept")
    encoder = parser.add_mutually_exclusive_group(required=True)
    encoder.add_argument("--text", metavar="ENCODER", help="compare names with captions by this text encoder")
    encoder.add_argument("--vision", metavar="ENCODER", help="compare prototypes with images by this vision encoder")
    encoder.add_argument("--shared", metavar="MODEL", help="compare names with images by this dual encoder or CLIP")
    parser.add_argument("--layer", type=int, default=-1, metavar="N", help="hidden state of the encoder (default -1)")
    parser.add_argument("--template", default="{}", metavar="TEXT", help="sentence around a name (default '{}')")
    parser.add_argument("--keep", type=int, default=100, metavar="K", help="records per concept (default 100)")
    parser.add_argument("--capacity", type=int, metavar="N", help="candidates held per concept (default 4 K)")
    parser.add_argument(
        "--min-similarity", type=float, default=-1.0, metavar="S", help="leave out what is less similar"
    )
    parser.add_argument("--batch-size", type=int, default=128, metavar="N", help="records at once (default 128)")
    parser.add_argument("--image-folder", metavar="FOLDER", help="what the records' image paths are relative to")
    parser.add_argument("--output", default="outputs/curate", metavar="FOLDER", help="for records and coverage")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu, cuda, ... (default cpu)")
    return parser


def build_judge(arguments: argparse.Namespace) -> Any:
    """
    What gives the similarities of records to concepts.

    Raises:
        ValueError: names with a vision encoder, prototypes with anything else, or bad concepts.
    """
    from poise.training.align.recipe import load_vocabulary
    from poise.training.curation.concept_similarity import NamesAgainstCaptions, PrototypesAgainstImages, shared_space
    from poise.training.curation.encoder_states import TextStates, VisionStates

    if (arguments.prototypes is None) != (arguments.vision is None):
        raise ValueError("--prototypes and --vision belong together: names are compared by --text or --shared")
    if "{}" not in arguments.template:
        raise ValueError(f"--template {arguments.template!r} lacks {{}}, the place of the name")
    if arguments.prototypes is not None:
        return PrototypesAgainstImages(
            arguments.prototypes, VisionStates(arguments.vision, arguments.device), arguments.layer
        )
    written = arguments.concepts
    is_list = "," in written and not Path(written).is_file()
    parts = [part for part in written.split(",") if part.strip()] if is_list else written
    names = load_vocabulary(parts, argument="--concepts")
    if arguments.shared is not None:
        return shared_space(arguments.shared, names, (arguments.template,), arguments.device)
    return NamesAgainstCaptions(
        names, TextStates(arguments.text, arguments.device), arguments.template, arguments.layer
    )


def main(argv: Sequence[str]) -> int:
    """Writes the kept records and the coverage of every concept; prints a summary."""
    arguments = build_parser().parse_args(list(argv))
    from poise.evaluation.whole_files import write_whole
    from poise.model_loading import chosen_device
    from poise.processing.records.task_record_files import write_task_records
    from poise.training.curation.concept_candidates import ConceptCandidates, coverage, coverage_summary
    from poise.training.curation.record_stream import RecordStream

    if arguments.keep < 1:
        raise ValueError(f"--keep {arguments.keep} must be 1 or more")
    capacity = 4 * arguments.keep if arguments.capacity is None else arguments.capacity
    if capacity < arguments.keep:
        raise ValueError(f"--capacity {capacity} is less than --keep {arguments.keep}: hold at least as many")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    chosen_device(arguments.device)
    if Path(arguments.output).exists() and not Path(arguments.output).is_dir():
        raise ValueError(f"--output {arguments.output!r} is a file: name a folder")
    stream = RecordStream(arguments.data, arguments.batch_size, arguments.image_folder)
    if next(iter(stream), None) is None:
        raise ValueError(f"--data {arguments.data!r} holds no record with captions, by which concepts are found")
    judge = build_judge(arguments)
    candidates = ConceptCandidates(judge.names, capacity, arguments.min_similarity)
    with tqdm(desc="looking through the pool", unit="record", disable=None) as bar:
        for records in stream:
            candidates.add(records, judge(stream, records))
            bar.update(len(records))
    folder = Path(arguments.output)
    folder.mkdir(parents=True, exist_ok=True)
    kept = candidates.balanced(arguments.keep)
    rows = coverage(candidates, kept, arguments.keep)
    summary = coverage_summary(rows, arguments.keep, candidates.seen)
    write_task_records((_with_concept(stream, item, judge.names) for item in kept), folder / RECORDS_FILE)
    content = {"summary": summary, "concepts": rows}
    write_whole(folder / COVERAGE_FILE, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    sys.stdout.write(coverage_text(rows, summary, arguments.keep) + "\n")
    sys.stderr.write(f"records in {folder / RECORDS_FILE}, coverage of every concept in {folder / COVERAGE_FILE}\n")
    return 0


def _with_concept(stream: Any, item: Any, names: Sequence[str]) -> dict[str, Any]:
    record = stream.for_writing(item.record)
    note = {"concept": names[item.concept], "concept_similarity": round(item.similarity, 4)}
    return {**record, "task": "caption", "metadata": {**(record.get("metadata") or {}), **note}}


def coverage_text(rows: Sequence[dict[str, Any]], summary: dict[str, Any], keep: int) -> str:
    """The summary, and the concepts that are covered worst."""
    worst = sorted(rows, key=lambda row: (row["kept"], row["similarity"] if row["similarity"] is not None else -1))
    width = max(len(row["concept"]) for row in worst[:_SHOWN])
    lines = [
        f"kept {summary['kept']:,} of {summary['pool']:,} records; {summary['full']} of {summary['concepts']} concepts "
        f"have {keep}, {summary['empty']} have none",
        f"unevenness (Gini) of records per concept: {summary['gini_pool']:.3f} in the pool, "
        f"{summary['gini_kept']:.3f} kept",
        f"covered worst:\n{'concept':<{max(width, 7)}}  kept  similarity  nearest in the pool",
    ]
    for row in worst[:_SHOWN]:
        similarity = "-" if row["similarity"] is None else f"{row['similarity']:.3f}"
        lines.append(f"{row['concept']:<{max(width, 7)}}  {row['kept']:>4}  {similarity:>10}  {row['nearest']:>8}")
    return "\n".join(lines)
