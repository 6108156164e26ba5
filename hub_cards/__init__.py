"""Model cards and publishing.

Names resolve on first use, so that importing the package stays light.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .card.data import CardData, EvaluationRow
    from .card.model_card import build_card
    from .publishing.card_collector import CardCollector
    from .publishing.model_push import push_to_hub
    from .publishing.publishable_folder import write_publishable_folder
    from .publishing.self_check import SelfCheckError, check_loads_without_poise

_HOME = {
    "CardCollector": "publishing.card_collector",
    "CardData": "card.data",
    "EvaluationRow": "card.data",
    "SelfCheckError": "publishing.self_check",
    "build_card": "card.model_card",
    "check_loads_without_poise": "publishing.self_check",
    "push_to_hub": "publishing.model_push",
    "write_publishable_folder": "publishing.publishable_folder",
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
