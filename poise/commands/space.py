"""`poise space OUT --model user/name`: a page on which anybody can ask a published model."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="poise space",
        description="Write a Gradio Space: upload an image, edit its tags and their scores, ask; see the answer with "
        "everything and with image or tags switched off, the router's weights, and the tags that a tagger proposes.",
        epilog="Run it with `python OUT/app.py` (pip install 'poise[space]'), or upload the folder: "
        "`hf upload user/space OUT --repo-type space`. example: poise space outputs/space --model user/name",
    )
    parser.add_argument("out", metavar="OUT", help="folder to write")
    parser.add_argument("--model", required=True, metavar="USER/NAME", help="a published model, or a folder with one")
    parser.add_argument("--tagger", metavar="USER/NAME", help="a dual encoder of `poise align`: Hub id or folder")
    parser.add_argument("--title", metavar="TEXT", help="of the page (default: the model's name)")
    parser.add_argument("--max-new-tokens", type=int, default=32, metavar="N", help="longest answer (default 32)")
    return parser


def main(argv: Sequence[str]) -> int:
    """Returns 0; what can go wrong is raised (see `poise.command_line`)."""
    arguments = build_parser().parse_args(list(argv))
    from poise.hub_cards.space.folder import write_space
    from poise.training.atomic_folders import named_when_full

    with named_when_full(arguments.out):
        written = write_space(
            Path(arguments.out), arguments.model, arguments.tagger, arguments.title, arguments.max_new_tokens
        )
    sys.stdout.write("\n".join([arguments.out, *(f"  {name}" for name in written)]) + "\n")
    if Path(arguments.model).is_dir():
        sys.stderr.write("the model is a folder of this machine: publish it and name user/name to run on the Hub\n")
    return 0
