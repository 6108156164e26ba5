"""Records that bring along another one's picture, tags and question, to be swapped in."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset

from poise.evaluation.sample_donors import as_map_style, donor_index


class SwappableRecords(Dataset):
    """
    Every record with `donors`: `{"image": ..., "tags": ..., "question": ...}`, each of another record, which its id and
    the seed pick. Picture and tags of two records, so that what is swapped in does not agree with itself.

    Args:
        records: task records with pictures and questions; others are left out. A stream is read into memory.
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
        start = donor_index(index, source, len(self), what, self.seed)
        for step in range(len(self)):
            place = (start + step) % len(self)
            if place == index:
                continue
            other: Mapping[str, Any] = self.records[place]
            if what == "tags" or other.get(what) is not None:
                return other.get(what) or []
        return None
