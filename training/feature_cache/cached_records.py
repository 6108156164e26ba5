"""Task records whose images and tags were encoded before, or whose tags a tagger gave before training: what takes their
place in a data set and in a batch.
"""

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from ...processing import TrainingCollator
from ...processing.records.record_data import RecordDataset, rows_of
from ...processing.records.tagged_records import TaggedRecords, load_tagger
from ...processing.taggers import ZeroShotTagger
from ...processing.tags import Tag
from .cache import FeatureCache, Features, fingerprint

FEATURES = "features"  # the field of a record that holds its own


class ImageOfSize(Image.Image):
    """An image that knows its size and nothing else: boxes are spoken relative to it."""

    def __init__(self, size: tuple[int, int]):
        super().__init__()
        self._size = size


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


class CachedRecords(RecordDataset):
    """Map-style task records with features in place of images; everything else is that of `records`."""

    def __init__(self, records: Any, vision: FeatureRows, tags: FeatureRows | None = None):
        self.records, self.vision, self.tags = records, vision, tags

    def __len__(self) -> int:
        return len(self.records)

    def rows(self, indices: Sequence[int], images: bool = True) -> list[dict[str, Any]]:
        bare = rows_of(self.records, indices, images=False)
        return [self._with_features(record, index) for record, index in zip(bare, indices, strict=True)]

    def _with_features(self, record: dict[str, Any], index: int) -> dict[str, Any]:
        features = self.vision.of(index)
        if not features:
            return {**record, "image": None}
        width, height = features["image_size"].tolist()
        if self.tags is not None:
            features = {**features, **self.tags.of(index)}
        return {**record, "image": ImageOfSize((width, height)), FEATURES: features}


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


class RecordsWithTags(RecordDataset):
    """
    Map-style task records with the tags that a [`ZeroShotTagger`] gave them, best first; row i keeps everything else of
    record i.

    Args:
        records: a map-style data set of task records.
        kept ([`FeatureCache`]): for each record `places` in the tagger's vocabulary and `scores`, (K,) each.
        tagger: what data loader workers get a copy of is its vocabulary and threshold, not itself.
    """

    def __init__(self, records: Any, kept: FeatureCache, tagger: ZeroShotTagger):
        self.records, self.kept = records, kept
        self.vocabulary, self.threshold = tagger.vocabulary, tagger.threshold

    def __len__(self) -> int:
        return len(self.records)

    def rows(self, indices: Sequence[int], images: bool = True) -> list[dict[str, Any]]:
        found = self.kept.batch(indices)
        columns = (rows_of(self.records, indices, images), found["places"].tolist(), found["scores"].tolist())
        return [{**record, "tags": self._tags(places, scores)} for record, places, scores in zip(*columns, strict=True)]

    def _tags(self, places: Sequence[int], scores: Sequence[float]) -> list[Tag]:
        pairs = zip(places, scores, strict=True)
        return [Tag(self.vocabulary[place], round(score, 4)) for place, score in pairs if score >= self.threshold]


def with_tags_of(name: str, records: Any, folder: str | os.PathLike, batch_size: int = 64) -> Any:
    """
    The records with the tags of the tagger that a recipe names.

    Args:
        name (`str`): a dual encoder's folder (`poise align` writes one) or a JSON-lines file, see `load_tagger`.
        records ([`RecordDataset`] or [`Scenes`]): each part of a mixture, whose places hold other records in every
            epoch.
        folder (`str`): where computed tags are kept; a tagger or data set that changed is noticed and tagged again.
        batch_size (`int`, *optional*, defaults to 64): images tagged together.

    Raises:
        FileNotFoundError, ValueError: the tagger is not there, a record has no tags in a file of tags, or only reading
            the records would tell them from others.
    """
    tagger = load_tagger(name)
    if not isinstance(tagger, ZeroShotTagger):
        if not getattr(tagger, "reads_images", True):
            tagger.tag_records(rows_of(records, range(len(records)), images=False))
        return TaggedRecords(records, tagger)
    tagger.model.to("cuda" if torch.cuda.is_available() else "cpu")

    def tags(rows: list[int]) -> Features:
        images = [(place, record["image"]) for place, record in enumerate(rows_of(records, rows))]
        present = [(place, image) for place, image in images if image is not None]
        count = min(tagger.max_tags, len(tagger.vocabulary))
        places, scores = torch.zeros(len(rows), count, dtype=torch.long), torch.full((len(rows), count), -1.0)  # (b, K)
        if present:
            best = tagger.scores_of(tagger.similarities([image for _, image in present])).topk(count, dim=1)
            where = torch.tensor([place for place, _ in present])  # (n,)
            places[where], scores[where] = best.indices.cpu(), best.values.cpu()
        return {"places": places, "scores": scores}

    settings = {name: value for name, value in tagger.settings().items() if name != "threshold"}
    key = fingerprint(tagger.model, tagger.processor.image_processor.to_dict(), settings, records.identity())
    kept = FeatureCache.open(folder, key, len(records), tags, batch_size=batch_size, description="tags")
    return RecordsWithTags(records, kept, tagger)
