"""Another sample of the same data set, to take a picture, tags or a question from: always the same one."""

from typing import Any

from poise.processing.scenes_random import stable_hash


def donor_index(index: int, sample_id: str, count: int, what: str, seed: int = 0) -> int:
    """
    Place of the sample that lends `what` to sample `index` of `count`, never that sample itself.

    It depends on the sample's id, `what`, the seed and the size of the data set, not on the order of calls.

    Raises:
        ValueError: there is no other sample.
    """
    if count < 2:
        raise ValueError(f"records holds {count} sample, but swapping needs another one: give at least 2.")
    return (index + 1 + stable_hash("donor", what, seed, sample_id) % (count - 1)) % count


def as_map_style(records: Any) -> Any:
    """`records` if it has a length and places, else a list of what it streams."""
    return records if hasattr(records, "__getitem__") and hasattr(records, "__len__") else list(records)
