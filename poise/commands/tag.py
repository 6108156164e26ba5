"""`poise tag DATA --tagger MODEL --output tagged.jsonl`: task records with the tags of a tagging model.

Every process of `accelerate launch` tags its share of the records and writes it beside the output as it goes; a run
that was killed goes on there, with any number of processes, and the output appears only when it is whole.
"""

import argparse
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from poise.commands.options import check_at_least


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="poise tag",
        description="Tag images with a zero-shot classifier (CLIP, SigLIP), a detector (DETR, RT-DETR, OWLv2, "
        "Grounding DINO), an image classifier, Florence-2, or a dual encoder of `poise align`.",
        epilog="example: poise tag records/train.jsonl --tagger openai/clip-vit-base-patch32 --vocabulary coco "
        "--output records/tagged.jsonl",
    )
    parser.add_argument("data", metavar="DATA", help="task records: a file, a folder, a data set, scenes:SPLIT")
    parser.add_argument("--tagger", required=True, metavar="MODEL", help="a folder or a Hub id")
    parser.add_argument("--output", required=True, metavar="FILE", help="JSON lines of task records to write")
    parser.add_argument(
        "--vocabulary", metavar="WORDS",
        help="what zero-shot models look for: a file with one name a line, `coco` (80 objects), or `data` (the words "
        "of the records' own tags, captions and answers)",
    )  # fmt: skip
    parser.add_argument(
        "--threshold", type=float, default=0.1, metavar="S", help="leave out lower scores (default 0.1)"
    )
    parser.add_argument("--max-tags", type=int, default=16, metavar="N", help="tags of an image at most (default 16)")
    parser.add_argument(
        "--calibrate", metavar="DATA",
        help="records whose own tags are true: scores are fitted to them (Platt scaling); not the records to tag",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="images at once (default 16)")
    parser.add_argument("--samples", type=int, metavar="N", help="only the first N records")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, ... (default: cuda if there is one)")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that the repository brings along")
    parser.add_argument("--restart", action="store_true", help="forget what a stopped run has tagged already")
    return parser


def main(argv: list[str]) -> int:
    """Writes the records. Returns 0; what can go wrong is raised."""
    arguments = build_parser().parse_args(argv)
    output = Path(arguments.output)
    if output.suffix != ".jsonl":
        raise ValueError(f"--output {arguments.output!r}: the records are JSON lines; name a .jsonl file")
    check_at_least(arguments, 1, "batch_size")
    from poise.evaluation.data_sources import load_data_source
    from poise.evaluation.saved_models import loading_errors
    from poise.evaluation.whole_files import failures_named
    from poise.model_loading import chosen_device

    if arguments.device is not None:
        chosen_device(arguments.device)
    records = load_data_source(arguments.data, arguments.samples)
    true = None if arguments.calibrate is None else load_data_source(arguments.calibrate)
    vocabulary = load_vocabulary(arguments.vocabulary, records)
    names = ("data", "tagger", "threshold", "max_tags", "calibrate", "samples")
    settings = {**{name: getattr(arguments, name) for name in names}, "vocabulary": vocabulary, "records": len(records)}

    from accelerate import PartialState
    from tqdm import tqdm

    from poise.processing.records.model_tagger import ModelTagger
    from poise.processing.records.task_record_files import write_task_records

    process = PartialState(cpu=arguments.device == "cpu")
    shares = Path(f"{output}.shares")
    if not arguments.restart:
        _check_settings(shares, settings)
    device = str(arguments.device or process.device)
    # A calibration stretches scores, so the threshold is applied behind it.
    threshold, max_tags = (0.0, 10_000) if arguments.calibrate else (arguments.threshold, arguments.max_tags)
    with loading_errors(arguments.tagger, "tagger"):
        tagger = ModelTagger.from_pretrained(
            arguments.tagger, vocabulary, threshold, max_tags, device, arguments.trust_remote_code
        )
    rescale = None if true is None else _calibration(tagger, true, arguments.calibrate, arguments.batch_size)
    process.wait_for_everyone()  # nobody begins before everybody has compared the settings
    if process.is_main_process:
        _begin(shares, settings, arguments.restart)
    process.wait_for_everyone()
    done = _tagged_rows(shares)
    process.wait_for_everyone()  # nobody writes before everybody has read
    rows = [row for row in range(len(records)) if row not in done][process.process_index :: process.num_processes]
    share = shares / f"{process.process_index}.jsonl"
    with failures_named(share), open(share, "a", encoding="utf-8") as file, tqdm(
        total=len(rows), unit="image", desc="tags", disable=not process.is_main_process
    ) as progress:  # fmt: skip
        for start in range(0, len(rows), arguments.batch_size):
            batch = rows[start : start + arguments.batch_size]
            for row, found in zip(batch, _found(tagger, [records[row] for row in batch]), strict=True):
                kept = found if rescale is None else _rescaled(found, rescale, arguments.threshold, arguments.max_tags)
                file.write(json.dumps([row, kept], ensure_ascii=False) + "\n")
            file.flush()
            progress.update(len(batch))
    process.wait_for_everyone()
    if process.is_main_process:
        count = write_task_records(_tagged(records, _tagged_rows(shares), arguments.tagger), output)
        shutil.rmtree(shares)
        print(f"{count:,} records in {output}")
    return 0


def load_vocabulary(words: str | None, records: Any) -> list[str] | None:
    """The names that `--vocabulary` means.

    Raises:
        ValueError: no such file, or no name in it.
    """
    if words is None:
        return None
    from poise.processing.records.json_lines import read_text
    from poise.processing.records.model_tagger import COCO_OBJECTS, words_of
    from poise.processing.tags import check_tag

    if words == "coco":
        return list(COCO_OBJECTS)
    if words == "data":
        names = words_of(unopened(records, row) for row in range(len(records)))
    elif Path(words).is_file():
        names = [line.strip() for line in read_text(Path(words)).splitlines() if line.strip()]
        for name in names:
            check_tag(name, "--vocabulary")
    else:
        raise ValueError(f"--vocabulary {words!r} is no file: name one with a name a line, or write `coco` or `data`")
    if not names:
        raise ValueError(f"--vocabulary {words!r} holds no name: give at least one")
    return list(dict.fromkeys(names))


def unopened(records: Any, row: int) -> Mapping[str, Any]:
    """A record with its image still the path of a file where it has one, so that no image is copied or decoded."""
    record = records.rows([row], images=False)[0]
    image = record["image"]
    return record if image is None or (isinstance(image, str) and os.path.isfile(image)) else records[row]


def _check_settings(shares: Path, settings: Mapping[str, Any]) -> None:
    """What a stopped run has tagged must belong to the same settings.

    Raises:
        ValueError: it belongs to others.
    """
    file = shares / "settings.json"
    if not file.is_file():
        return
    earlier = json.loads(file.read_text(encoding="utf-8"))
    changed = [name for name, value in settings.items() if earlier.get(name) != value]
    if changed:
        raise ValueError(
            f"--output: {str(shares)!r} holds tags of a stopped run with another {changed[0]}: give its settings "
            "to go on, or --restart to begin anew"
        )


def _begin(shares: Path, settings: Mapping[str, Any], restart: bool) -> None:
    """Makes the folder of the shares."""
    if restart:
        shutil.rmtree(shares, ignore_errors=True)
    from poise.evaluation.whole_files import write_whole

    shares.mkdir(parents=True, exist_ok=True)
    write_whole(shares / "settings.json", json.dumps(settings))


def _tagged_rows(shares: Path) -> dict[int, list[Any]]:
    """What is found so far, by row of the records. Half a line at a share's end, where a run was killed, is cut off."""
    found: dict[int, list[Any]] = {}
    for share in sorted(shares.glob("*.jsonl")):
        text = share.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if len(whole) < len(text):
            share.write_bytes(whole)
        found.update(json.loads(line) for line in whole.decode("utf-8").split("\n") if line)
    return found


def _found(tagger: Any, records: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """[name, score, box or None] of each record."""
    places = [place for place, record in enumerate(records) if record["image"] is not None]
    found: list[list[Any]] = [[] for _ in records]
    for place, own in zip(places, tagger.found([records[place]["image"] for place in places]), strict=True):
        found[place] = [[item.name, round(item.score, 4), item.box] for item in own]
    return found


def _calibration(tagger: Any, records: Any, data: str, batch_size: int) -> tuple[float, float]:
    """Temperature and bias for the logit of a score, fitted to records (of `data`) whose own tags are true.

    Raises:
        ValueError: the records have no tags, or the scores say nothing about them.
    """
    import numpy as np

    from poise.evaluation.calibration import fit_temperature

    logits, truth = [], []
    for start in range(0, len(records), batch_size):
        batch = [records[row] for row in range(start, min(start + batch_size, len(records)))]
        for record, found in zip(batch, _found(tagger, batch), strict=True):
            true = {name for name, score in record.get("tags") or [] if score >= 0.5}
            if true:
                logits += [_logit(score) for _, score, _ in found]
                truth += [name in true for name, _, _ in found]
    try:
        return fit_temperature(np.array(logits), np.array(truth, dtype=bool))
    except ValueError as error:
        raise ValueError(f"--calibrate {data!r}: {error} Its records need true tags in the tagger's words.") from None


def _rescaled(found: Sequence[Any], rescale: tuple[float, float], threshold: float, max_tags: int) -> list[Any]:
    temperature, bias = rescale

    def scaled(score: float) -> float:
        return round(1 / (1 + math.exp(-(_logit(score) / temperature + bias))), 4)

    kept = [[name, scaled(score), box] for name, score, box in found]
    return [item for item in kept if item[1] >= threshold][:max_tags]


def _logit(score: float) -> float:
    score = min(max(score, 1e-6), 1 - 1e-6)
    return math.log(score / (1 - score))


def _tagged(records: Any, found: Mapping[int, list[Any]], tagger: str) -> Iterator[dict[str, Any]]:
    """The records in their order with their tags; boxes go into the metadata."""
    for row in range(len(records)):
        record = dict(unopened(records, row))
        record["tags"] = [[name, score] for name, score, _ in found[row]]
        boxes = [[name, box] for name, _, box in found[row] if box is not None]
        metadata = {**(record.get("metadata") or {}), "tagger": tagger}
        metadata.pop("tag_scores", None)  # "simulated" no longer holds
        yield {**record, "metadata": {**metadata, "tag_boxes": boxes} if boxes else metadata}
