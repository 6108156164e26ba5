"""Tags that are plausible for a picture and not among its own: what a tagger that follows the prior would invent."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any


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
