"""Another sample of the same data set, to take an image, tags or a question from: always the same one.

Records that bring along another one's image, tags and question, to be swapped in.

Tags that are plausible for an image and not among its own: what a tagger that follows the prior would invent.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset

from ..processing.degradations.stateless_random import stable_hash


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


def donor_places(index: int, sample_id: str, count: int, what: str, seed: int = 0) -> Iterator[int]:
    """The place of [`donor_index`], then those behind it, should that sample have nothing to lend; never `index`."""
    first = donor_index(index, sample_id, count, what, seed)
    return (place for step in range(count) if (place := (first + step) % count) != index)


def as_map_style(records: Any) -> Any:
    """`records` if it has a length and places, else a list of what it streams."""
    return records if hasattr(records, "__getitem__") and hasattr(records, "__len__") else list(records)


class SwappableRecords(Dataset):
    """
    Every record with `donors`: `{"image": ..., "tags": ..., "question": ...}`, each of another record, which its id and
    the seed pick. Image and tags of two records, so that what is swapped in does not agree with itself.

    Args:
        records: task records with images and questions; others are left out. A stream is read into memory.
        seed (`int`, *optional*, defaults to 0): picks other donors.
        what (`Sequence[str]`, *optional*): which of the three are lent; all by default.

    Raises:
        ValueError: fewer than two records.
    """

    def __init__(self, records: Any, seed: int = 0, what: Sequence[str] = ("image", "tags", "question")):
        self.records, self.seed, self.what = as_map_style(records), seed, tuple(what)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside of the {len(self)} records.")
        record = dict(self.records[index])
        donors = {name: self._donor(index, str(record["id"]), name) for name in self.what}
        return {**record, "donors": donors}

    def _donor(self, index: int, source: str, what: str) -> Any:
        """The first record from the picked one on that has something to lend."""
        for place in donor_places(index, source, len(self), what, self.seed):
            other: Mapping[str, Any] = self.records[place]
            if what == "tags" or other.get(what) is not None:
                return other.get(what) or []
        return None


class TagPrior:
    """Which tags occur together in a data set.

    Args:
        records: task records; only their tags are read.

    Scenes say themselves what the prior would invent, in `metadata["prior_tags"]`; that goes first.
    """

    def __init__(self, records: Iterable[Mapping[str, Any]]):
        self.counts: Counter[str] = Counter()
        self.together: dict[str, Counter[str]] = defaultdict(Counter)
        for record in records:
            names = list(dict.fromkeys(name for name, _ in record.get("tags") or []))
            self.counts.update(names)
            for name in names:
                self.together[name].update(other for other in names if other != name)

    def false_names(self, record: Mapping[str, Any]) -> list[str]:
        """Names that are not the record's own, those that go with its tags first, then the most frequent."""
        metadata = record.get("metadata") or {}
        if metadata.get("prior_tags"):
            return list(metadata["prior_tags"])
        own = {name for name, _ in record.get("tags") or []}
        weight: Counter[str] = Counter()
        for name in own:
            weight.update(self.together.get(name, {}))
        names = [name for name in self.counts if name not in own]
        return sorted(names, key=lambda name: (-weight[name], -self.counts[name], name))
