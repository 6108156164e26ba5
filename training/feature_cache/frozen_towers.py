"""The feature cache of `poise sft`: what the frozen towers make of the training records, computed once.

Cached training is the same computation as training without: the tower runs on batches of the size of a training batch,
in the precision of the training, over exactly what the processor makes of the images. Stored as float32 the losses
are equal up to the order of summation: some matrix kernels treat the last rows of a batch differently, and an image
stands at another place in the cache's batches than in training. Half precision rounds the features once.
"""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import IterableDataset

from ...modeling.vision_features import encode_image
from ...processing import PoiseProcessor
from ...processing.records.record_data import rows_of
from ..run_files import base_of
from .cache import STORAGE_DTYPES, FeatureCache, Features, fingerprint
from .cached_records import CachedRecords, FeatureRows, without_pixels

logger = logging.getLogger(__name__)

BLOCK = 512  # records read together while looking for images and tags
SHARD_BYTES = 256e6
_PURITY_PROBES = 4


def cached_records(
    records: Any, model: torch.nn.Module, processor: PoiseProcessor, args: Any, data: Mapping[str, Any]
) -> CachedRecords:
    """
    Training records with the frozen towers' features in place of images and, where the tag encoder is frozen, tags.

    Args:
        records: a map-style data set of task records.
        model: as `prepare_for_training` returns it, with or without PEFT.
        processor ([`PoiseProcessor`]): made for the model.
        args (`TrainingArguments`): batch size, precision, device and the run's folder.
        data (`Mapping`): the recipe's section: `feature_cache`, `feature_cache_dtype`.

    Raises:
        ValueError: a stream, which has no rows; records that change whenever they are read; a tower that learns.
    """
    base = base_of(model).model
    if any(parameter.requires_grad for parameter in base.vision_tower.parameters()):
        raise ValueError("data.feature_cache needs a frozen vision tower: drop learning_rates.vision_tower")
    if isinstance(records, IterableDataset) or not hasattr(records, "__len__"):
        raise ValueError("data.feature_cache needs records that have row numbers, not a stream: set it to false")
    _check_pure(records)
    folder = data["feature_cache"]
    folder = Path(args.output_dir) / "features" if folder is True else Path(folder)
    storage = STORAGE_DTYPES[data.get("feature_cache_dtype", "float32")]
    encoder = FrozenTowers(base, processor, args)
    vision = encoder.vision(records, folder, storage)
    tags = encoder.tags(records, folder, storage)
    return CachedRecords(records, vision, tags)


def _check_pure(records: Any) -> None:
    """Random augmentation, degradation or drawing shows itself in a record that is not twice the same."""
    changes = hasattr(records, "set_epoch")
    for index in range(0, len(records), max(1, len(records) // _PURITY_PROBES)):
        changes = changes or fingerprint(_plain(records[index])) != fingerprint(_plain(records[index]))
    if changes:
        raise ValueError(
            "data.train gives another record every time or every epoch (random augmentation, degradation or mixing), "
            "so its features cannot be kept: set data.feature_cache: false, or fix the randomness by row number"
        )


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: record[name] for name in ("image", "tags", "question") if record.get(name) is not None}


class FrozenTowers:
    """The frozen vision tower and tag encoder of a model, as functions of rows that a cache can keep."""

    def __init__(self, base: Any, processor: PoiseProcessor, args: Any):
        self.base, self.processor, self.args = base, processor, args
        self.config = base.config
        self.batch_size = args.per_device_train_batch_size
        self.precision = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None

    def running(self, tower: torch.nn.Module) -> contextlib.ExitStack:
        """On the training device, in evaluation mode, without a graph, in the precision of the training."""
        tower.to(self.args.device)
        tower.eval()
        stack = contextlib.ExitStack()
        stack.enter_context(torch.no_grad())
        stack.enter_context(
            torch.autocast(self.args.device.type, dtype=self.precision, enabled=self.precision is not None)
        )
        return stack

    def in_full_batches(self, compute: Callable[[list[int]], Features]) -> Callable[[list[int]], Features]:
        """The last batch is filled up with its last row: kernels sum in another order for another batch size."""

        def filled(rows: list[int]) -> Features:
            missing = self.batch_size - len(rows)
            return {name: tensor[: len(rows)] for name, tensor in compute(rows + rows[-1:] * missing).items()}

        return filled

    def vision(self, records: Any, folder: Path, storage: torch.dtype) -> FeatureRows:
        first, names, row_of = distinct(image_names(records))
        config, tower = self.config, self.base.vision_tower
        if not first:
            raise ValueError("data.feature_cache: none of the training records has an image: set it to false")
        key = fingerprint(
            "vision", tower, str(tower.dtype), str(self.precision), config.vision_config.to_dict(),
            list(config.vision_feature_layers), config.vision_feature_select, config.vision_image_size,
            config.router_type == "reliability", self.processor.image_processor.to_dict(), names, self.batch_size,
        )  # fmt: skip

        def compute(rows: list[int]) -> Features:
            images = [record["image"] for record in rows_of(records, [first[row] for row in rows])]
            pixels = self.processor(images=images, images_kwargs={"return_tensors": "pt"})["pixel_values"]
            pixels = torch.as_tensor(pixels).to(self.args.device)  # (b, 3, H, W)
            with self.running(tower):
                features, profile = encode_image(tower, pixels, config)  # (b, S, P, Dv), (b, 6L)
            sizes = torch.tensor([image.size for image in images])  # (b, 2)
            return {
                "vision_features": features,
                "image_size": sizes,
                **({} if profile is None else {"image_profile": profile}),
            }

        filled = self.in_full_batches(compute)
        bytes_of_row = filled([0])["vision_features"].numel() * torch.finfo(storage).bits // 8
        cache = FeatureCache.open(
            folder, key, len(first), filled, storage, self._shard_rows(bytes_of_row), self.batch_size,
            description="vision features", exact=["image_profile"],
        )  # fmt: skip
        return FeatureRows(cache, row_of)

    def tags(self, records: Any, folder: Path, storage: torch.dtype) -> FeatureRows | None:
        """Features of the tag encoder, or `None` if something before its output learns."""
        soft_prompt, encoder = self.base.soft_prompt, getattr(self.base, "tag_encoder", None)
        if encoder is None or getattr(soft_prompt, "score_embedding", None) is not None:
            return None
        if any(parameter.requires_grad for parameter in encoder.parameters()):
            return None
        _, names, row_of = distinct(tag_names(records))
        if not names:
            return None
        length = max(
            self._tag_inputs(names[start : start + BLOCK])["tag_input_ids"].shape[1]
            for start in range(0, len(names), BLOCK)
        )
        tokenizer = self.processor.tag_tokenizer
        key = fingerprint(
            "tags", encoder, str(encoder.dtype), str(self.precision), tokenizer.backend_tokenizer.to_str(),
            tokenizer.model_max_length, self.processor.max_tags, self.processor.tag_score_encoding, names, length,
            self.batch_size,
        )  # fmt: skip

        def compute(rows: list[int]) -> Features:
            inputs = self._tag_inputs([names[row] for row in rows])
            missing = length - inputs["tag_input_ids"].shape[1]
            ids, mask, scores = (
                torch.nn.functional.pad(inputs[name], (0, missing)).to(self.args.device)  # (b, L)
                for name in ("tag_input_ids", "tag_attention_mask", "tag_scores")
            )
            soft_prompt.to(self.args.device)
            with self.running(encoder):
                return {"tag_features": soft_prompt.encode(encoder, ids, mask.bool(), scores)}  # (b, L, Dt)

        filled = self.in_full_batches(compute)
        bytes_of_row = length * encoder.config.hidden_size * torch.finfo(storage).bits // 8
        cache = FeatureCache.open(
            folder, key, len(names), filled, storage, self._shard_rows(bytes_of_row), self.batch_size,
            description="tag features",
        )  # fmt: skip
        return FeatureRows(cache, row_of)

    def _tag_inputs(self, names: list[str]) -> dict[str, torch.Tensor]:
        """What the processor makes of tags, (b, L); images it wants to see, but they do not matter."""
        tags = [[(tag, score) for tag, score in json.loads(name)] for name in names]
        made = without_pixels(self.processor)(images=[Image.new("RGB", (1, 1))] * len(tags), tags=tags)
        return {name: torch.as_tensor(value) for name, value in made.items() if name.startswith("tag_")}

    def _shard_rows(self, bytes_of_row: int) -> int:
        """As many whole batches as make a file of a few hundred megabytes."""
        batches = max(1, int(SHARD_BYTES / bytes_of_row / self.batch_size))
        return min(batches * self.batch_size, 1024 * self.batch_size)


def image_names(records: Any) -> list[str | None]:
    """
    For each record a text that is the same for the same image and for no other one; `None` without an image.

    Files are told apart by path, size and time, drawn scenes by their settings; other images are decoded and read.
    """
    names: list[str | None] = []
    for index, record in enumerate(_unopened(records)):
        image = record["image"]
        if isinstance(image, str):
            names.append(_file_name(image, record))
            continue
        if image is not None:
            image = rows_of(records, [index])[0]["image"]
        names.append(None if image is None else fingerprint(image))
    return names


def _file_name(image: str, record: Mapping[str, Any]) -> str:
    if not Path(image).is_file():
        return image  # a drawn scene
    facts = Path(image).stat()
    # A box is in pixels of the stored image: only images without one are turned upright.
    return f"{image} {facts.st_size} {facts.st_mtime_ns} {'bbox' in record}"


def tag_names(records: Any) -> list[str | None]:
    """For each record its tags as text; `None` without tags."""
    tags = ([[tag[0], float(tag[1])] for tag in record.get("tags") or []] for record in _unopened(records))
    return [json.dumps(own) if own else None for own in tags]


def _unopened(records: Any) -> Iterator[dict[str, Any]]:
    for start in range(0, len(records), BLOCK):
        yield from rows_of(records, range(start, min(start + BLOCK, len(records))), images=False)


def distinct(names: Sequence[str | None]) -> tuple[list[int], list[str], torch.Tensor]:
    """
    Every name once: many questions may be asked about one image.

    Returns:
        The first record of each name, the names themselves, and for each record the place of its name (-1 for `None`).
    """
    place: dict[str, int] = {}
    first: list[int] = []
    for index, name in enumerate(names):
        if name is not None and name not in place:
            place[name] = len(first)
            first.append(index)
    row_of = torch.tensor([-1 if name is None else place[name] for name in names])  # (number of records,)
    return first, list(place), row_of
