"""`poise sft`: fine-tunes, and collects on the way what the model card will say."""

from collections.abc import Sequence

from poise.hub_cards.publishing.card_collector import CardCollector
from poise.training.recipe_loading import parse_overrides
from poise.training.sft import stage as sft

__all__ = ["build_parser", "main", "parse_overrides"]
build_parser = sft.build_parser


def main(argv: Sequence[str]) -> int:
    """As `poise.training.sft.stage.main`, with `card_data.json` beside the run for `poise publish`."""
    return sft.main(argv, callbacks=lambda recipe: [CardCollector(recipe)])
