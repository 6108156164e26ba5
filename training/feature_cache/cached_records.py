"""Task records whose images and tags were encoded before: what takes their place in a data set and in a batch."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset, Subset

from ...processing import TrainingCollator
from ...processing.records.record_mixture import RecordMixture
from ...processing.records.tagged_records import PrecomputedTags, TaggedRecords
from ...processing.records.task_record_files import TaskRecords
from ...processing.scenes.scenes import Scenes
from .cache import FeatureCache
from .computed_tags import RecordsWithTags, read_records

FEATURES = "features"  # the field of a record that holds its own


class PictureOfSize(Image.Image):
    """An image that knows its size and nothing else: boxes are spoken relative to it."""

    def __init__(self, size: tuple[int, int]):
        super().__init__()
        self._size = size


def without_pictures(records: Any, indices: Sequence[int]) -> list[dict[str, Any]]:
    """Records at these places; where the data set can tell them apart from their images, no image is decoded."""
    if isinstance(records, Subset):
        return without_pictures(records.dataset, [records.indices[index] for index in indices])
    if isinstance(records, RecordsWithTags):
        bare = without_pictures(records.records, indices)
        return [{**record, "tags": own} for record, own in zip(bare, records.tags.tags(indices), strict=True)]
    if isinstance(records, TaggedRecords) and isinstance(records.tagger, PrecomputedTags):
        bare = without_pictures(records.records, indices)
        return [{**record, "tags": own} for record, own in zip(bare, records.tagger.tag_records(bare), strict=True)]
    if isinstance(records, RecordMixture):
        found = [records.where(range(len(records))[index]) for index in indices]
        return [{**without_pictures(records.parts[part], [row])[0], "pass": turn} for part, row, turn in found]
    if isinstance(records, Scenes) and not records.degradations:
        return records.records(indices, images=False)
    if isinstance(records, TaskRecords) and records.image_rows is None:
        return [dict(records.records[range(len(records))[index]]) for index in indices]
    return read_records(records, indices)


@dataclass
class FeatureRows:
    """
    One kind of features and where each record's are.

    Attributes:
        cache ([`FeatureCache`]): the features.
        row_of (`torch.Tensor`): the row of each record, -1 for one without.
    """

    cache: FeatureCache
    row_of: torch.Tensor  # (number of records,)

    def of(self, index: int) -> dict[str, torch.Tensor]:
        row = int(self.row_of[index])
        return {} if row < 0 else self.cache[row]


class CachedRecords(Dataset):
    """Map-style task records with features in place of images; everything else is that of `records`."""

    def __init__(self, records: Any, vision: FeatureRows, tags: FeatureRows | None = None):
        self.records, self.vision, self.tags = records, vision, tags

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([range(len(self))[index]])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        bare = without_pictures(self.records, indices)
        return [self._with_features(record, index) for record, index in zip(bare, indices, strict=True)]

    def _with_features(self, record: dict[str, Any], index: int) -> dict[str, Any]:
        features = self.vision.of(index)
        if not features:
            return {**record, "image": None}
        width, height = features["image_size"].tolist()
        if self.tags is not None:
            features = {**features, **self.tags.of(index)}
        return {**record, "image": PictureOfSize((width, height)), FEATURES: features}


class NoPixels:
    """Stands where the image processor stands, and makes nothing of the images it is given."""

    model_input_names: Sequence[str] = ()

    def __call__(self, images: Any, **kwargs: Any) -> dict[str, Any]:
        return {}


class CachedTrainingCollator(TrainingCollator):
    """
    A [`TrainingCollator`] that also takes the records of [`CachedRecords`]: their batches hold `vision_features`
    [N, S, P, Dv] (and `image_profile` [N, 6·L], `tag_features` [N, L, Dt]) in place of `pixel_values`.
    """

    def rows(self, records: Sequence[Mapping[str, Any]]):
        cached = [record[FEATURES] for record in records if FEATURES in record]
        if not cached:
            return super().rows(records)
        pixel = Image.new("RGB", (1, 1))
        bare = [{**record, "image": pixel if FEATURES in record else None} for record in records]
        processor = self.processor
        self.processor = without_pixels(processor)
        try:
            texts, ids, inputs = super().rows(bare)
        finally:
            self.processor = processor
        for name in ("vision_features", "image_profile"):
            if name in cached[0]:
                inputs[name] = torch.stack([features[name] for features in cached])  # (N, ...)
        if "tag_input_ids" in inputs and any("tag_features" in features for features in cached):
            inputs["tag_features"] = _padded_features(cached, inputs["tag_input_ids"].shape[1])  # (N, L, Dt)
        return texts, ids, inputs


def without_pixels(processor: Any) -> Any:
    """The same processor, for images whose pixels nobody wants."""
    light = copy.copy(processor)
    light.image_processor = NoPixels()
    return light


def _padded_features(cached: list[dict[str, torch.Tensor]], length: int) -> torch.Tensor:
    """Features of N images' tags, cut to the longest of them, [N, L, Dt]; zero for an image without tags."""
    known = next(features["tag_features"] for features in cached if "tag_features" in features)
    nothing = known.new_zeros(length, known.shape[-1])
    rows = [features["tag_features"][:length] if "tag_features" in features else nothing for features in cached]
    return torch.stack(rows)
