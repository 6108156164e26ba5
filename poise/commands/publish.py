"""`poise publish RUN --repo user/name`: a trained run becomes a Hub repository that anybody can load."""

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from poise.hub_cards.publishing.upload import check_repository_name

SIZE = re.compile(r"[1-9]\d*[KMGT]B", re.IGNORECASE)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="poise publish",
        description="Publish a run: weights, processor, code, model card with results and plots, an answered sample.",
        epilog="Nothing is uploaded before the folder has been loaded, and has answered, in a process without Poise. "
        "What poise evaluate, robustness and diagnose measured on the run is on the card. "
        "example: poise publish outputs/demo/reliability --repo user/name --license apache-2.0",
    )
    parser.add_argument("run", metavar="RUN", nargs="?", help="a run's folder, its model folder, or a checkpoint")
    parser.add_argument("--repo", required=True, metavar="USER/NAME", help="the Hub repository; created if need be")
    parser.add_argument("--private", action="store_true", help="create the repository private")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--adapter-only", action="store_true", help="only what was trained, without the backbones")
    kind.add_argument(
        "--decoding",
        action="store_true",
        help="no run, but the decoding methods for any VLM, as a repository for generate(custom_generate=...)",
    )
    kind.add_argument("--merge", action="store_true", help="merge adapters of a quantized run in full precision")
    parser.add_argument("--dry-run", action="store_true", help="write and check the folder, list it, upload nothing")
    parser.add_argument("--output", metavar="FOLDER", help="where the folder is written (default: RUN/published)")
    parser.add_argument("--license", metavar="ID", help="licence of the trained parts, such as apache-2.0")
    parser.add_argument(
        "--evaluation", action="append", default=[], metavar="FILE", help="scores for the card (JSON); may be repeated"
    )
    parser.add_argument("--message", metavar="TEXT", help="message of the commit")
    parser.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="of a weight file (default 5GB)")
    return parser


def main(argv: Sequence[str]) -> int:
    """Returns 0; what can go wrong is raised (see `poise.command_line`)."""
    arguments = build_parser().parse_args(list(argv))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    check_repository_name(arguments.repo)
    if not SIZE.fullmatch(arguments.max_shard_size):
        raise ValueError(f"--max-shard-size {arguments.max_shard_size!r} is no size of a file: write 5GB or 500MB")
    if arguments.decoding == (arguments.run is not None):
        raise ValueError(f"RUN={arguments.run} with --decoding={arguments.decoding}: give a run, or --decoding.")
    if arguments.decoding:
        return _publish_decoding(arguments)
    from poise.hub_cards.publishing.vlm_router_folder import vlm_router_of
    from poise.model_loading import check_no_statistics

    check_no_statistics(arguments.run)
    routed = vlm_router_of(arguments.run)
    if routed is not None:
        return _publish_vlm_router(arguments, routed)
    # Everything that a slip could spoil comes before the model, which may take minutes to load.
    from poise.hub_cards.card.backbone_names import base_models
    from poise.hub_cards.card.licenses import look_up_licenses
    from poise.hub_cards.publishing.publishable_folder import (
        SAMPLE_FILE,
        check_replaceable,
        write_publishable_folder,
    )
    from poise.hub_cards.publishing.run_folder import RunFolder
    from poise.training.atomic_folders import named_when_full

    if arguments.output is None and (Path(arguments.run) / SAMPLE_FILE).is_file():
        raise ValueError(
            f"RUN {arguments.run!r} is a published folder already: name the run that it was made of, or upload it as "
            f"it is (hf upload {arguments.repo} {arguments.run})"
        )
    run = RunFolder.find(arguments.run)
    card_data, recipe, figures = run.everything_for_the_card(arguments.evaluation)
    card_data.license = arguments.license or card_data.license
    output = Path(arguments.output) if arguments.output else run.root / "published"
    check_replaceable(output)
    model, processor = run.load(arguments.adapter_only, arguments.merge)
    if not arguments.dry_run:
        card_data.backbone_licenses = look_up_licenses(base_models(model.config.backbones))
    with named_when_full(output, f"{run.root} is untouched: make room and start again"):
        folder = write_publishable_folder(
            model,
            processor,
            output,
            card_data,
            recipe,
            repository=arguments.repo,
            adapter_only=arguments.adapter_only,
            max_shard_size=arguments.max_shard_size,
            figures=figures,
        )
    return _uploaded(arguments, folder, "it was loaded without Poise, and answered its sample; ")


def _publish_decoding(arguments: argparse.Namespace) -> int:
    from poise.hub_cards.publishing.decoding_repository import write_decoding_repository

    folder = Path(arguments.output or "outputs/decoding")
    return _uploaded(arguments, write_decoding_repository(folder, arguments.repo))


def _publish_vlm_router(arguments: argparse.Namespace, model: Path) -> int:
    from poise.hub_cards.publishing.vlm_router_folder import write_vlm_router_folder

    folder = Path(arguments.output) if arguments.output else model.with_name("published")
    settings = (arguments.repo, arguments.license, arguments.evaluation)
    return _uploaded(arguments, write_vlm_router_folder(model, folder, *settings))


def _uploaded(arguments: argparse.Namespace, folder: Path, checked: str = "") -> int:
    """Uploads a folder, or lists it with --dry-run and says how it was `checked`."""
    from poise.hub_cards.publishing.secret_scan import refuse_secrets
    from poise.hub_cards.publishing.upload import upload

    if arguments.dry_run:
        refuse_secrets(folder)
        sys.stdout.write(f"{listing(folder)}\n{checked}nothing was uploaded: leave out --dry-run to publish it\n")
        return 0
    published = upload(folder, arguments.repo, arguments.private, arguments.create_pr, arguments.message)
    sys.stdout.write(published.url + ("" if published.changed else " (nothing had changed)") + "\n")
    return 0


def listing(folder: Path) -> str:
    """Files of a folder with their sizes, and their sum."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = [path.stat().st_size for path in files]
    lines = [f"{size:>14,}  {path.relative_to(folder).as_posix()}" for size, path in zip(sizes, files, strict=True)]
    return "\n".join([str(folder), *lines, f"{sum(sizes):>14,}  in {len(files)} files"])
