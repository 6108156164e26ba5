"""Model cards and publishing.

Names resolve on first use, so that importing the package stays light.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poise.hub_cards.card_collector import CardCollector
    from poise.hub_cards.card_data import CardData, EvaluationRow
    from poise.hub_cards.model_card import build_card
    from poise.hub_cards.model_push import push_to_hub
    from poise.hub_cards.publishable_folder import write_publishable_folder
    from poise.hub_cards.self_check import SelfCheckError, check_loads_without_poise

_HOME = {
    "CardCollector": "card_collector",
    "CardData": "card_data",
    "EvaluationRow": "card_data",
    "SelfCheckError": "self_check",
    "build_card": "model_card",
    "check_loads_without_poise": "self_check",
    "push_to_hub": "model_push",
    "write_publishable_folder": "publishable_folder",
}
__all__ = [
    "CardCollector",
    "CardData",
    "EvaluationRow",
    "SelfCheckError",
    "build_card",
    "check_loads_without_poise",
    "push_to_hub",
    "write_publishable_folder",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
