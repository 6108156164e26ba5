"""`poise data`: convert published data into task records, show records, verify caches, publish drawn scenes."""

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from poise.commands.options import check_at_least

EXAMPLES = """examples:
  poise data convert coco-captions captions_val2017.json --images val2017 --output records/validation.jsonl
  poise data convert refcoco "refs(unc).p" instances.json --images train2014 --split testA --output testA.jsonl
  poise data convert photos FOLDER --output records
  poise data show scenes:prior_broken --config demo
  poise data show records/train.jsonl --model outputs/demo/reliability/model
  poise data verify outputs/sft --remove
  poise data publish-scenes --repo user/scenes --dry-run"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="poise data",
        description="Convert published data sets into task records, and look at records.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="{convert,show,verify,publish-scenes}")
    convert = actions.add_parser("convert", help="published data → JSON lines of task records")
    convert.add_argument("format", help="coco-captions, textcaps, okvqa, vqav2, aokvqa, refcoco(+|g), pope or photos")
    convert.add_argument("source", nargs="+", help="published files; or a data set on disk or of the Hub; or a folder")
    convert.add_argument("--images", metavar="FOLDER", help="where the images are that annotations name")
    convert.add_argument("--output", required=True, metavar="FILE", help="JSON lines to write (photos: a folder)")
    convert.add_argument("--split", help="only this split, where the source holds several")
    convert.add_argument("--config", help="configuration of a data set of the Hub that has several")
    convert.add_argument("--skip-missing", action="store_true", help="leave out records whose image is not there")

    show = actions.add_parser("show", help="a PNG sheet of what the model will see")
    show.add_argument("source", nargs="?", help="as data.train, or scenes:SPLIT,name=value (default: the recipe's)")
    made_for = show.add_mutually_exclusive_group()
    made_for.add_argument("--config", default="demo", metavar="RECIPE", help="whose processor (default demo)")
    made_for.add_argument("--model", metavar="FOLDER", help="a saved model, whose processor is taken instead")
    show.add_argument("--split", default="train", help="which part of the source (default train)")
    show.add_argument("--output", default="data.png", metavar="PNG", help="default data.png")
    show.add_argument("--count", type=int, default=8, metavar="N", help="records, evenly over all (default 8)")
    show.add_argument("--max-length", type=int, metavar="N", help="cut rows as training would (default: the recipe's)")

    verify = actions.add_parser("verify", help="read feature caches and checkpoints, compare all with their checksums")
    verify.add_argument("folder", help="a run's folder, a checkpoint, or a folder of feature caches")
    verify.add_argument("--remove", action="store_true", help="delete damaged shards, which the next run makes again")

    publish = actions.add_parser("publish-scenes", help="drawn scenes → a data set repository of the Hub")
    publish.add_argument("--repo", required=True, metavar="USER/NAME", help="the data set; created if need be")
    publish.add_argument("--dry-run", action="store_true", help="write the folder, list it, upload nothing")
    publish.add_argument("--output", metavar="FOLDER", default="outputs/scenes", help="default outputs/scenes")
    publish.add_argument(
        "--sizes", nargs="+", default=[], metavar="SPLIT=N", help="scenes of a split (default train=20000, others 1000)"
    )
    publish.add_argument(
        "--seed", type=int, default=0, metavar="N", help="another seed is another data set (default 0)"
    )
    publish.add_argument(
        "--prior-strength", type=float, default=0.9, metavar="P", help="how often a color is the prior's (default 0.9)"
    )
    publish.add_argument(
        "--degradations", nargs="+", default=["standard"], metavar="NAME", help="or their sets (default standard)"
    )
    publish.add_argument(
        "--degraded-size", type=int, default=100, metavar="N", help="questions per degradation, severity (default 100)"
    )
    publish.add_argument("--license", default="apache-2.0", metavar="ID", help="default apache-2.0")
    publish.add_argument("--private", action="store_true", help="create the repository private")
    publish.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")
    publish.add_argument("--message", metavar="TEXT", help="message of the commit")
    return parser


def main(argv: list[str]) -> int:
    """Returns 0; what can go wrong is raised."""
    arguments = build_parser().parse_args(argv)
    actions = {"convert": _convert, "show": _show, "verify": _verify, "publish-scenes": _publish_scenes}
    return actions[arguments.action](arguments)


def _verify(arguments: argparse.Namespace) -> int:
    from poise.training.atomic_folders import MANIFEST, damage_of
    from poise.training.feature_cache.cache import damaged_shards

    folder = Path(arguments.folder)
    if not folder.is_dir():
        raise ValueError(f"FOLDER {arguments.folder!r} is no folder: name a run, a checkpoint or feature caches")
    sealed = sorted({*(path.parent for path in folder.rglob(MANIFEST)), *folder.glob("checkpoint-*")})
    found = [*((path, damage_of(path)) for path in sealed), *damaged_shards(folder)]
    if not found:
        raise ValueError(f"FOLDER {arguments.folder!r} holds neither a checkpoint nor a shard of a feature cache")
    damaged = [(path, damage) for path, damage in found if damage is not None]
    for path, damage in damaged:
        print(f"{path} is damaged, {damage}")
        if arguments.remove and path.is_file():
            path.unlink()
    if damaged:
        raise ValueError(f"{len(damaged)} of {len(found)} checkpoints and shards in {folder} are damaged")
    print(f"{len(found)} checkpoints and shards in {folder} are sound")
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    import logging

    from poise.processing.records.photo_annotations import convert_photo_annotations
    from poise.processing.records.published_formats import converted_records, converter_of, read_published
    from poise.processing.records.record_sources import published_rows
    from poise.processing.records.task_record_files import write_task_records

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments.format == "photos":
        counts = convert_photo_annotations(arguments.source[0], arguments.output)
        for name, count in counts.items():
            print(f"{count:,} records in {Path(arguments.output) / name}.jsonl")
        return 0
    converter_of(arguments.format)
    split = arguments.split
    if Path(arguments.source[0]).is_file() or Path(arguments.source[0]).suffix:
        document: Any = read_published(arguments.source)
    else:
        document = published_rows(arguments.source[0], split or "train", arguments.config)
        split = None
    records = converted_records(arguments.format, document, arguments.images, split, arguments.skip_missing)
    count = write_task_records(records, arguments.output)
    print(f"{count:,} records in {arguments.output}")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    check_at_least(arguments, 1, "count", "max_length")
    folder = Path(arguments.output).parent
    if not folder.is_dir():
        raise ValueError(f"--output {arguments.output!r}: there is no folder {os.fspath(folder)!r}; make it first")
    if Path(arguments.output).suffix.lower() != ".png" or Path(arguments.output).is_dir():
        raise ValueError(f"--output {arguments.output!r}: the sheet is a PNG file; name one, such as data.png")
    model = Path(arguments.model or "")
    if arguments.model is not None and model.is_dir() and not (model / "processor_config.json").is_file():
        raise ValueError(
            f"--model {arguments.model!r} holds no processor_config.json: name the folder of a saved model"
        )
    from poise.evaluation.data_sources import load_data_source
    from poise.processing.batching.collators import TrainingCollator
    from poise.processing.batching.data_preview import draw_preview
    from poise.processing.processing_poise import PoiseProcessor
    from poise.processing.records.record_sources import open_records
    from poise.training.sft.assembly import processor_of
    from poise.training.sft.recipe import load_recipe
    from poise.training.sft.records import load_records, record_sources

    recipe = load_recipe(arguments.config)
    name = arguments.source
    if name is None:
        records, _ = load_records(recipe)
        name = f"recipe {arguments.config}"
    elif name.startswith("scenes:"):
        records = load_data_source(name)
    else:
        (source,) = record_sources(name, "train", recipe.data)
        records = open_records(source, arguments.split, several_images=True)
    count = min(arguments.count, len(records))
    chosen = [records[place * len(records) // count] for place in range(count)]
    if arguments.model is None:
        processor, is_encoder_decoder = processor_of(recipe), _is_encoder_decoder(recipe)
    else:
        from transformers import AutoConfig

        from poise.evaluation.saved_models import loading_errors

        with loading_errors(arguments.model):
            processor = PoiseProcessor.from_pretrained(arguments.model)
            is_encoder_decoder = AutoConfig.from_pretrained(arguments.model).is_encoder_decoder
    max_length = arguments.max_length or recipe.data.max_length
    collator = TrainingCollator(processor, max_length, is_encoder_decoder, seed=recipe.seed)
    title = f"{name}: {count} of {len(records):,} records"
    if any(_has_simulated_tags(record) for record in chosen):
        title += "; tag scores are simulated, some tags invented"
        print(f"{name}: tag scores are simulated, some tags invented", file=sys.stderr)
    draw_preview(chosen, collator, arguments.output, title)
    print(arguments.output)
    return 0


def _has_simulated_tags(record: Mapping[str, Any]) -> bool:
    metadata = record.get("metadata") or {}
    return bool(record.get("tags")) and (metadata.get("tag_scores") == "simulated" or "scene" in metadata)


def _publish_scenes(arguments: argparse.Namespace) -> int:
    from poise.commands.publish import listing
    from poise.hub_cards.publishing.scenes_data_set import write_scenes_data_set
    from poise.hub_cards.publishing.secret_scan import refuse_secrets
    from poise.hub_cards.publishing.upload import check_repository_name, upload
    from poise.training.atomic_folders import named_when_full

    check_repository_name(arguments.repo)
    sizes = {}
    for asked in arguments.sizes:
        split, _, size = asked.partition("=")
        if not size.isdecimal():
            raise ValueError(f"--sizes {asked!r} is no SPLIT=N: write train=20000")
        sizes[split] = int(size)
    with named_when_full(arguments.output):
        folder = write_scenes_data_set(
            arguments.output,
            arguments.repo,
            sizes,
            arguments.seed,
            arguments.prior_strength,
            arguments.degradations,
            arguments.degraded_size,
            arguments.license,
        )
    if arguments.dry_run:
        refuse_secrets(folder)
        print(listing(folder))
        return 0
    published = upload(
        folder, arguments.repo, arguments.private, arguments.create_pr, arguments.message, repo_type="dataset"
    )
    print(published.url + ("" if published.changed else " (nothing had changed)"))
    return 0


def _is_encoder_decoder(recipe: Any) -> bool:
    from transformers import AutoConfig

    from poise.training.backbone_loading import resolve_backbone

    return bool(AutoConfig.from_pretrained(resolve_backbone(recipe.model.text)).is_encoder_decoder)
