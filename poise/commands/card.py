"""`poise card MODEL`: writes the model card anew, from what is known by now, without touching the weights."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="poise card",
        description="Write the card (README.md, plots, evaluation_results.json) of a model folder anew: a published "
        "folder, or a run's. What poise evaluate, robustness and diagnose measured on the run is on it.",
        epilog="example: poise card outputs/demo/reliability --evaluation scores.json",
    )
    parser.add_argument("model", metavar="MODEL", help="a published folder, a run's folder, or its model folder")
    parser.add_argument(
        "--evaluation", action="append", default=[], metavar="FILE", help="more scores (JSON); may be repeated"
    )
    parser.add_argument("--name", metavar="TEXT", help="title of the card")
    parser.add_argument("--repo", metavar="USER/NAME", help="the repository that its code names")
    parser.add_argument("--license", metavar="ID", help="licence of the trained parts, such as apache-2.0")
    return parser


def main(argv: Sequence[str]) -> int:
    """Returns 0; what can go wrong is raised (see `poise.command_line`)."""
    arguments = build_parser().parse_args(list(argv))
    from poise.hub_cards.card.data import CARD_DATA_FILE, CardData, add_evaluation_file
    from poise.hub_cards.card.public_recipe import public_recipe
    from poise.hub_cards.publishing.publishable_folder import write_card
    from poise.hub_cards.publishing.run_folder import RunFolder
    from poise.hub_cards.publishing.upload import check_repository_name

    if arguments.repo:
        check_repository_name(arguments.repo)
    folder = Path(arguments.model)
    figures: dict[str, Path] = {}
    if (folder / "config.json").is_file() and (folder / CARD_DATA_FILE).is_file():  # published: it has all by itself
        card_data = CardData.load(folder / CARD_DATA_FILE)
        router_type = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("router_type")
        for path in arguments.evaluation:
            add_evaluation_file(card_data, path, router_type)
        card_data.drop_repetitions()
    else:
        run = RunFolder.find(folder)
        card_data, recipe, figures = run.everything_for_the_card(arguments.evaluation)
        card_data.recipe = public_recipe(recipe)
        folder = run.finished or run.checkpoint or folder
    card_data.model_name = arguments.name or card_data.model_name
    card_data.license = arguments.license or card_data.license
    card_data.repository = arguments.repo or card_data.repository
    write_card(folder, card_data, figures)
    sys.stdout.write(f"{folder / 'README.md'}\n")
    return 0
