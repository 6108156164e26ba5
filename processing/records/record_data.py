"""Data sets of task records, read by row, with or without their images, and told apart from others; some of the records
of a data set, and several data sets as one, each with its weight.
"""

import random
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch

UNREAD = object()  # in the place of an image that nothing but its bytes tells from others


class RecordDataset(torch.utils.data.Dataset):
    """
    Map-style task records. A subclass has `__len__` and `rows`, and `identity` where it can tell; [`Scenes`] has both,
    too.
    """

    def __len__(self) -> int:
        raise NotImplementedError

    def rows(self, indices: Sequence[int], images: bool = True) -> list[dict[str, Any]]:
        """
        Records at these places, from 0 on.

        Args:
            images (`bool`, *optional*, defaults to `True`): without them none is opened or drawn, and `image` is the
                path of a file, the name of a drawn scene, `UNREAD`, or `None` where there is none.
        """
        raise NotImplementedError

    def identity(self) -> Any:
        """
        What tells these records from others, without opening an image: plain values, for the key of a cache.

        Raises:
            ValueError: only reading them would tell.
        """
        raise ValueError(
            f"data.tagger cannot tag a {type(self).__name__} once and for all: give a file, a folder or scenes, or "
            "write the tags into the records"
        )

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows([range(len(self))[index]])[0]  # also turns a negative index round, and raises IndexError

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return self.rows([range(len(self))[index] for index in indices])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))


class ChosenRecords(RecordDataset):
    """The records of a data set at some of its places, in that order."""

    def __init__(self, dataset: Any, indices: Sequence[int]):
        self.dataset, self.indices = dataset, list(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def rows(self, indices: Sequence[int], images: bool = True) -> list[dict[str, Any]]:
        return rows_of(self.dataset, [self.indices[index] for index in indices], images)

    def identity(self) -> Any:
        return [self.dataset.identity(), self.indices]


def rows_of(records: Any, indices: Sequence[int], images: bool = True) -> list[dict[str, Any]]:
    """`rows` of any map-style data set: one that has none, such as a list, is read record by record."""
    if hasattr(records, "rows"):
        return records.rows(indices, images)
    return [records[index] for index in indices]


class RecordMixture(RecordDataset):
    """Map-style mixture: an epoch has as many records as its parts together, shared out by weight.

    A part that gets more places than it has records is repeated, one that gets fewer is not seen whole in an epoch; the
    next epoch goes on where it stopped, and every pass through a part has an order of its own. All of it follows from
    `seed` and the epoch, so that every process and every worker sees the same. Every prefix of an epoch has the right
    proportions.

    Args:
        parts (`Sequence`): map-style data sets of task records.
        weights (`Sequence[float]`, *optional*): shares of the epoch, relative to one another; by default each part is
            seen once.
        seed (`int`, *optional*, defaults to 0).

    Every record has `pass`, how often its part was gone through before.

    Raises:
        ValueError: no part, an empty one, or weights that are not as many positive numbers.
    """

    def __init__(self, parts: Sequence[Any], weights: Sequence[float] | None = None, seed: int = 0):
        self.parts, self.seed, self.epoch = list(parts), seed, 0
        sizes = [len(part) for part in self.parts]
        if not sizes or min(sizes) == 0:
            raise ValueError(f"parts of {sizes} records: every part of a mixture needs at least one record.")
        weights = list(sizes if weights is None else weights)
        if len(weights) != len(sizes) or not all(weight > 0 for weight in weights):
            raise ValueError(f"weights={weights} must be one positive number for each of the {len(sizes)} parts.")
        total = sum(weights)
        self.sizes, self.shares = sizes, [weight / total for weight in weights]
        self.owners, self.places = _interleaved(self.shares, sum(sizes))
        self.counts = [self.owners.count(number) for number in range(len(sizes))]

    def __len__(self) -> int:
        return len(self.owners)

    def set_epoch(self, epoch: int) -> None:
        """Go on in the parts where the epoch before stopped."""
        self.epoch = epoch

    def where(self, index: int) -> tuple[int, int, int]:
        """(part, its record, pass) at a place of the epoch."""
        number = self.owners[index]
        drawn = self.epoch * self.counts[number] + self.places[index]
        turn, place = divmod(drawn, self.sizes[number])
        return number, _order(self.seed, number, turn, self.sizes[number])[place], turn

    def rows(self, indices: Sequence[int], images: bool = True) -> list[dict[str, Any]]:
        found = [self.where(index) for index in indices]
        return [{**rows_of(self.parts[part], [row], images)[0], "pass": turn} for part, row, turn in found]


def _interleaved(shares: Sequence[float], length: int) -> tuple[list[int], list[int]]:
    """Whose turn it is at each place, and how often it has been before: always that part which is furthest behind."""
    owners, places = [], []
    had = [0] * len(shares)
    for place in range(length):
        number = max(range(len(shares)), key=lambda part: shares[part] * (place + 1) - had[part])
        owners.append(number)
        places.append(had[number])
        had[number] += 1
    return owners, places


@cache
def _order(seed: int, number: int, turn: int, size: int) -> list[int]:
    rows = list(range(size))
    random.Random(f"{seed} {number} {turn}").shuffle(rows)
    return rows
