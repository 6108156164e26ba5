"""`poise fit-router MODEL --data ...`: how far an image can be trusted, for any VLM, without training it."""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from poise.commands.options import add_model_options, chosen_model

SEVERITIES = (1, 3, 5)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="poise fit-router",
        description="One pass of a VLM's own vision tower over sound images gives the statistics by which the "
        "reliability router tells whether a new image is like them. The model is not changed; nothing is trained.",
        epilog="example: poise fit-router user/vlm --data photos.jsonl --output outputs/trust; "
        "then poise fit-router user/vlm --output outputs/trust --image photo.jpg",
    )
    parser.add_argument("model", metavar="MODEL", help="folder of a saved model, a run, or a Hub repository")
    parser.add_argument("--data", metavar="SOURCE", help="task records or scenes:SPLIT; about 400 sound images or more")
    parser.add_argument("--output", metavar="FOLDER", help="for the statistics (default: outputs/fit-router/MODEL)")
    parser.add_argument("--samples", type=int, default=2000, metavar="N", help="images at most (default 2000)")
    parser.add_argument(
        "--check",
        type=int,
        default=32,
        metavar="N",
        help="images that are left out of the fit, and looked at as they are and damaged (default 32)",
    )
    parser.add_argument("--image", nargs="+", metavar="FILE", help="tell how far these images can be trusted")
    parser.add_argument(
        "--tag-encoder",
        metavar="ID",
        help="also give the model a router and a soft prompt, with a BERT-like encoder for the records' tags: a folder "
        "that loads as a model, whose statistics of images and tags are those of the data",
    )
    add_model_options(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def main(argv: list[str]) -> int:
    """Fits, or reads what was fitted, and prints verdicts. Returns 0; what can go wrong is raised."""
    arguments = build_parser().parse_args(argv)
    from poise.evaluation.data_sources import load_data_source
    from poise.model_loading import output_folder
    from poise.modeling.image_reliability import ImageReliability
    from poise.processing.image_loading import open_image

    # Everything that a slip could spoil comes before the model, which may take minutes to load.
    folder = output_folder(arguments.model, "fit-router", arguments.output)
    if arguments.data is None and not arguments.image:
        raise ValueError("neither --data nor --image is given: name sound images to fit to, or images to judge.")
    if arguments.check < 0 or arguments.samples < 1:
        raise ValueError(f"--check {arguments.check} --samples {arguments.samples}: write 0 or more, and 1 or more.")
    if arguments.data is None and not (folder / "config.json").is_file():
        raise ValueError(f"--output {str(folder)!r} holds no statistics: fit them with --data first.")
    if arguments.tag_encoder is not None and (arguments.data is None or arguments.image):
        raise ValueError(f"--tag-encoder {arguments.tag_encoder}: give --data with tags, and no --image.")
    images = [open_image(name) for name in arguments.image or ()]
    records = None if arguments.data is None else load_data_source(arguments.data, arguments.samples)
    model, processor = chosen_model(arguments)
    found: dict[str, Any] = {"model": arguments.model}
    if arguments.tag_encoder is not None:
        _fit_routed(arguments, model, processor, records, folder)
        return 0
    if records is None:
        with redirect_stdout(sys.stderr):  # huggingface_hub says that it loads
            reliability = ImageReliability.from_pretrained(folder).eval()
    else:
        reliability, held_out = _fitted(arguments, model, processor, records)
        found |= reliability.origin
        if held_out:
            found["flagged"] = _flagged(reliability, model, processor, held_out)
        with _added_to(folder) as new:
            card = {"model": arguments.model, "folder": str(folder), "flagged": found.get("flagged")}
            reliability.save_pretrained(new, model_card_kwargs=card)
            (new / "fit.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if images:
        trusts = [reliability.trust(model, processor, image) for image in images]
        found["trust"] = dict(zip(arguments.image, trusts, strict=True))
    sys.stdout.write(json.dumps(found, indent=2) + "\n" if arguments.json else _report(found))
    if records is not None:
        judge = f"poise fit-router {arguments.model} --output {folder} --image FILE"
        sys.stderr.write(f"statistics are in {folder}; they judge a new image by\n{judge}\n")
    return 0


def _fitted(arguments: argparse.Namespace, model: Any, processor: Any, records: Any) -> tuple[Any, list[Any]]:
    """Statistics of all images but the last `--check` ones, and these."""
    from poise.modeling.image_reliability import ImageReliability

    fitted_to = max(0, len(records) - arguments.check)
    split = f"{len(records)} records: {fitted_to} to fit to, {len(records) - fitted_to} held out by --check"
    sys.stderr.write(f"{split}; one pass of the vision tower over each\n")
    origin = {"data": arguments.data, "images": fitted_to}
    images = _images(records, range(fitted_to), "fit")
    try:
        reliability = ImageReliability.fitted(model, processor, images, origin=origin)
    except ValueError as error:
        if "too few" in str(error):
            raise ValueError(f"--data {arguments.data!r} has {split}; {error}") from error
        raise
    return reliability, list(_images(records, range(fitted_to, len(records)), "held out"))


def _fit_routed(arguments: argparse.Namespace, model: Any, processor: Any, records: Any, folder: Any) -> None:
    """A [`RoutedVlm`] whose router has seen the records' images and tags, saved by the ids of its parts."""
    import torch
    from tqdm.auto import tqdm

    from poise.evaluation.chat_collator import router_inputs
    from poise.modeling.image_reliability import image_inputs
    from poise.modeling.modeling_vlm_router import RoutedVlm
    from poise.processing.prompts import Prompts
    from poise.processing.records.task_record_files import opened_record
    from poise.training.backbone_loading import read_tokenizer, resolve_backbone

    encoder = resolve_backbone(arguments.tag_encoder)
    tokenizer = read_tokenizer("tag_encoder", encoder)
    routed = RoutedVlm.from_vlm(model, encoder)
    routed.config.vlm = arguments.model
    tagged = 0
    # What an image shows is told from what the one before it shows: questions about one image must not stand together.
    order = torch.randperm(len(records), generator=torch.Generator().manual_seed(0)).tolist()
    for place in tqdm(order, desc="fit", unit="image", disable=not sys.stderr.isatty()):
        record = opened_record(records[place])
        if record["image"] is None:
            continue
        shown = {"tags": record.get("tags") or [], "question": Prompts().question(record)}
        inputs = {**image_inputs(processor, record["image"]), **router_inputs([shown], tokenizer)}
        routed.observe(**{name: value.to(model.device) for name, value in inputs.items()})
        tagged += bool(record.get("tags"))
    if not tagged:
        raise ValueError(
            f"--data {arguments.data!r} holds no tags: tag it first (poise tag), or leave --tag-encoder out."
        )
    with _added_to(folder) as new:
        routed.eval().save_pretrained(new)
    sys.stderr.write(f"a router fitted to {len(records)} images, {tagged} of them with tags, is in {folder}\n")


@contextmanager
def _added_to(folder: Path) -> Iterator[Path]:
    """A folder to write into, whose files then join those of `folder`; none of them does where the writing fails."""
    from poise.training.atomic_folders import named_when_full

    folder.parent.mkdir(parents=True, exist_ok=True)
    with named_when_full(folder), tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        yield Path(scratch)
        for path in sorted(path for path in Path(scratch).rglob("*") if path.is_file()):
            place = folder / path.relative_to(scratch)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place)


def _images(records: Any, indices: Sequence[int], name: str) -> Iterator[Any]:
    from tqdm.auto import tqdm

    from poise.processing.records.task_record_files import opened_record

    for place in tqdm(indices, desc=name, unit="image", disable=not sys.stderr.isatty()):
        image = opened_record(records[place])["image"]
        if image is not None:
            yield image


def _flagged(reliability: Any, model: Any, processor: Any, images: Sequence[Any]) -> dict[str, float]:
    """Share of held-out images that are distrusted, as they are and by degradation and severity."""
    from tqdm.auto import tqdm

    from poise.modeling.image_reliability import DISTRUSTED
    from poise.processing.degradations.degradations import degrade_image
    from poise.processing.degradations.image_degradations import IMAGE_DEGRADATIONS

    cells = [("sound", 0), *((name, s) for name in IMAGE_DEGRADATIONS if name != "swapped_image" for s in SEVERITIES)]
    flagged = {}
    for name, severity in tqdm(cells, desc="check", unit="cell", disable=not sys.stderr.isatty()):
        count = 0
        for i, image in enumerate(images):
            shown = degrade_image(image, name, severity, sample_id=str(i)) if severity else image
            count += reliability.trust(model, processor, shown) < DISTRUSTED
        flagged[f"{name}_{severity}" if severity else name] = count / len(images)
    return flagged


def _report(found: dict[str, Any]) -> str:
    from poise.modeling.image_reliability import DISTRUSTED

    lines = []
    if "flagged" in found:
        flagged = found["flagged"]
        lines = [f"share of held-out images called unlike the {found['images']} sound ones", ""]
        lines += [f"{'':<12}{'':>9}" + "".join(f"{f'severity {s}':>12}" for s in SEVERITIES)]
        lines += [f"{'sound':<12}{flagged['sound']:>9.2f}"]
        for name in dict.fromkeys(key.rpartition("_")[0] for key in flagged if key != "sound"):
            lines.append(f"{name:<12}{'':>9}" + "".join(f"{flagged[f'{name}_{s}']:>12.2f}" for s in SEVERITIES))
    for name, trust in found.get("trust", {}).items():
        warning = "" if trust >= DISTRUSTED else "  unlike the sound images: do not rely on an answer about it"
        lines.append(f"{trust:.3f}  {name}{warning}")
    return "\n".join(lines) + "\n" if lines else ""
