"""Exact Shapley values of a few players: what each adds to the others, averaged over all orders of joining.

Shapley, "A Value for n-Person Games" (1953), equation 13.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import factorial

import numpy as np

Coalition = tuple[str, ...]


def coalitions(players: Sequence[str]) -> list[Coalition]:
    """All subsets of `players`, in their order, the smallest first."""
    return [some for size in range(len(players) + 1) for some in combinations(players, size)]


def shapley_values(values: Mapping[Coalition, np.ndarray], players: Sequence[str]) -> dict[str, np.ndarray]:
    """
    Shapley value (n,) of each player for each of n games. They add up to the value of all minus the value of none.

    Args:
        values: coalition, as [`coalitions`] writes it → what it is worth (n,).

    Raises:
        ValueError: a coalition is missing.
    """
    for some in coalitions(players):
        if some not in values:
            raise ValueError(f"values lacks the coalition {'+'.join(some) or 'none'}: give all {2 ** len(players)}.")
    count = len(players)
    found = {}
    for player in players:
        others = [name for name in players if name != player]
        total = np.zeros_like(np.asarray(values[()], dtype=float))  # (n,)
        for some in coalitions(others):
            weight = factorial(len(some)) * factorial(count - len(some) - 1) / factorial(count)
            joined = tuple(name for name in players if name in some or name == player)
            total = total + weight * (np.asarray(values[joined]) - np.asarray(values[some]))
        found[player] = total
    return found
