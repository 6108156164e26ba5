"""A data set of which every record comes as it is and in every degradation and severity."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset

from ...processing.degradations.degradations import (
    DEGRADATION_SETS,
    DEGRADATION_STREAMS,
    NEEDS_DONOR,
    NEEDS_FALSE_NAME,
    NEEDS_FOREIGN_TAGS,
    SEVERITIES,
    check_degradation,
    degrade,
)
from ..sample_donors import TagPrior, as_map_style, donor_places

CLEAN = "clean"


class DegradedRecords(Dataset):
    """
    Record by record: clean, then each degradation at each severity; `len(records) * len(cells)` in all.

    A degraded record is a pure function of (sample, degradation, severity, seed). The other image of a swapped sample
    belongs to the sample: its id and the seed pick it from the data set.

    Every item is a task record with an `id` of its own and `cell`: `{"source", "degradation", "severity"}`; `cell` is
    `None` where a degradation has nothing to work on (no image, no tags, a caption's instruction in place of a
    question, no false tag that could be invented).

    Args:
        records: task records; a stream is read into memory.
        degradations (`Sequence[str]`, *optional*): keys of `DEGRADATION_STREAMS`; the standard set by default.
        severities (`Sequence[int]`, *optional*, defaults to 1 to 5)
        seed (`int`, *optional*, defaults to 0): of the random degradations.
        clean (`bool`, *optional*, defaults to `True`): whether the records themselves are among them.

    Raises:
        ValueError: an unknown degradation or severity; with "swapped_image", fewer than two records.
    """

    def __init__(
        self,
        records: Any,
        degradations: Sequence[str] = DEGRADATION_SETS["standard"],
        severities: Sequence[int] = SEVERITIES,
        seed: int = 0,
        clean: bool = True,
    ):
        for name in degradations:
            for severity in severities:
                check_degradation(name, severity)
        self.records, self.seed = as_map_style(records), seed
        self.cells = [(CLEAN, 0)] if clean else []
        self.cells += [(name, severity) for name in degradations for severity in severities]
        invents = any(name in NEEDS_FALSE_NAME for name in degradations)
        knows_prior = len(self.records) > 0 and bool((self.records[0].get("metadata") or {}).get("prior_tags"))
        numbers = range(len(self.records)) if invents and not knows_prior else ()
        self.prior = TagPrior(self.records[number] for number in numbers)
        self._kept: dict[int, Mapping[str, Any]] = {}

    def __len__(self) -> int:
        return len(self.records) * len(self.cells)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside of the {len(self)} degraded records.")
        number, cell = divmod(index, len(self.cells))
        name, severity = self.cells[cell]
        record = self._record(number)
        source = str(record["id"])
        place = {"source": source, "degradation": name, "severity": severity}
        if name == CLEAN:
            return {**record, "id": f"{source} {CLEAN}", "cell": place}
        options = self._options(number, record, name)
        degraded = dict(record) if options is None else degrade(dict(record), name, severity, self.seed, **options)
        return {**degraded, "id": f"{source} {name} {severity}", "cell": None if options is None else place}

    def _options(self, number: int, record: Mapping[str, Any], name: str) -> dict[str, Any] | None:
        """What `degrade` needs besides; `None` where there is nothing to degrade."""
        stream = DEGRADATION_STREAMS[name]
        if stream == "image":
            if record.get("image") is None:
                return None
            return {"donor": self._donor(number, record, "image")} if name in NEEDS_DONOR else {}
        if stream == "question":
            return {} if record["task"] != "caption" and record.get("question") else None
        if not record.get("tags"):
            return None
        if name in NEEDS_FALSE_NAME and not (record.get("metadata") or {}).get("prior_tags"):
            names = self.prior.false_names(record)
            return {"prior_tags": names} if names else None
        return {"foreign_tags": self._donor(number, record, "tags")} if name in NEEDS_FOREIGN_TAGS else {}

    def _donor(self, number: int, record: Mapping[str, Any], stream: str) -> Any:
        """The image or the tags of another record."""
        for place in donor_places(number, str(record["id"]), len(self.records), stream, self.seed):
            if found := self._record(place).get(stream):
                return found
        raise ValueError(
            f"records has one sample with {stream} only, but this degradation needs another one's: leave it out."
        )

    def _record(self, number: int) -> Mapping[str, Any]:
        # The cells of a record follow one another, so its image is read once; the donor's, too.
        if number not in self._kept:
            if len(self._kept) > 1:
                self._kept.pop(next(iter(self._kept)))
            self._kept[number] = self.records[number]
        return self._kept[number]
