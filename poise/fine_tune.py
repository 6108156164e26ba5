"""`poise sft`: fine-tunes, and collects on the way what the model card will say."""

from collections.abc import Sequence

from poise.hub_cards.card_collector import CardCollector
from poise.training import sft


def main(argv: Sequence[str]) -> int:
    """As `poise.training.sft.main`, with `card_data.json` beside the run for `poise publish`."""
    return sft.main(argv, callbacks=lambda recipe: [CardCollector(recipe)])
