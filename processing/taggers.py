"""Taggers: what gives a picture its tags. All of them answer `tag_records(records) -> list of tags per record`.

`ZeroShotTagger` asks any CLIP, SigLIP or Poise dual encoder about a vocabulary; `DualEncoderTagger` is the one that
`poise align` writes, with its vocabulary and calibration beside the weights; `PrecomputedTags` looks up what another
tagger (such as RAM) wrote down.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from .image_loading import open_image
from .tags import Tag, check_tags

TAGGER_FILE = "tagger.json"


class ZeroShotTagger:
    """
    Scores every name of a vocabulary by the similarity of its text to the picture.

    Without a calibration the model's own logits are turned into scores: by a sigmoid where it has a bias (SigLIP), else
    by a softmax over the vocabulary (CLIP), which can only divide one certainty among all tags. Calibrated, a score is
    sigmoid(cosine / temperature + bias).

    Args:
        model (`PreTrainedModel`): has `get_image_features` and `get_text_features`.
        processor: made for the model: image processor and tokenizer.
        vocabulary (`Sequence[str]`): names of tags, each once.
        templates (`Sequence[str]`, *optional*): sentences with `{}` for the name; a tag's vector is their mean
            (arXiv 2103.00020, section 3.1.4).
        temperature, bias (`float`, *optional*): the calibration; both or neither.
        threshold (`float`, *optional*, defaults to 0.1): tags with a lower score are not given.
        max_tags (`int`, *optional*, defaults to 16): at most, the best first.
        max_text_length (`int`, *optional*): of a text in tokens; by default what the model's configuration says.

    Raises:
        ValueError: an empty or repeated vocabulary, a template without `{}`, a threshold outside [0, 1], half a
            calibration.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        vocabulary: Sequence[str],
        templates: Sequence[str] = ("a photo of a {}.",),
        temperature: float | None = None,
        bias: float | None = None,
        threshold: float = 0.1,
        max_tags: int = 16,
        max_text_length: int | None = None,
    ):
        names = [" ".join(name.split()) for name in vocabulary]
        twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
        if not names or "" in names or twice is not None:
            problem = "is empty" if not names else "holds an empty name" if "" in names else f"holds {twice!r} twice"
            raise ValueError(f"vocabulary {problem}: give every tag once.")
        for template in templates:
            if "{}" not in template:
                raise ValueError(f"templates holds {template!r} without {{}}, the place of the tag's name.")
        if not 0.0 <= threshold <= 1.0:
            raise ValueError(f"threshold={threshold} must lie in [0, 1].")
        if max_tags < 1:
            raise ValueError(f"max_tags={max_tags} must be 1 or more.")
        if (temperature is None) != (bias is None) or (temperature is not None and temperature <= 0):
            raise ValueError(f"temperature={temperature}, bias={bias}: give both or neither, the temperature above 0.")
        self.model, self.processor, self.vocabulary, self.templates = model.eval(), processor, names, tuple(templates)
        self.temperature, self.bias, self.threshold, self.max_tags = temperature, bias, threshold, max_tags
        self.max_text_length = max_text_length or getattr(model.config, "max_text_length", None)
        self._tag_embeds: torch.Tensor | None = None

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str], batch_size: int = 256) -> torch.Tensor:
        """Unit vectors (len(texts), D)."""
        tokenizer = self.processor.tokenizer
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        cut = {} if self.max_text_length is None else {"truncation": True, "max_length": self.max_text_length}
        if "siglip" in self.model.config.model_type:
            cut = {"padding": "max_length", "truncation": True, "max_length": 64}  # as it was trained
        parts = []
        for start in range(0, len(texts), batch_size):
            batch = tokenizer(list(texts[start : start + batch_size]), **{"padding": True, **cut}, return_tensors="pt")
            parts.append(_unit(self.model.get_text_features(**batch.to(self.model.device))))  # (b, D)
        return torch.cat(parts)

    @torch.no_grad()
    def embed_images(self, images: Sequence[Image.Image], batch_size: int = 64) -> torch.Tensor:
        """Unit vectors (len(images), D)."""
        parts = []
        for start in range(0, len(images), batch_size):
            batch = self.processor.image_processor(list(images[start : start + batch_size]), return_tensors="pt")
            pixels = batch["pixel_values"].to(self.model.device, self.model.dtype)
            parts.append(_unit(self.model.get_image_features(pixel_values=pixels)))  # (b, D)
        return torch.cat(parts)

    def tag_embeds(self) -> torch.Tensor:
        """Unit vectors of the vocabulary (C, D), made once."""
        if self._tag_embeds is None:
            by_template = [self.embed_texts([t.format(name) for name in self.vocabulary]) for t in self.templates]
            self._tag_embeds = torch.nn.functional.normalize(torch.stack(by_template).mean(0), dim=-1)  # (C, D)
        return self._tag_embeds

    def similarities(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Cosines of pictures and tags (N, C)."""
        return self.embed_images(images) @ self.tag_embeds().T

    def scores_of(self, similarities: torch.Tensor) -> torch.Tensor:
        """Scores in [0, 1] of cosines (N, C)."""
        if self.temperature is not None:
            return torch.sigmoid(similarities / self.temperature + self.bias)
        return uncalibrated_scores(self.model, similarities)

    def tags_of(self, scores: torch.Tensor) -> list[list[Tag]]:
        """The tags of each row of scores (N, C) that reach the threshold, best first."""
        best = scores.topk(min(self.max_tags, scores.shape[1]), dim=1)  # (N, K) twice
        return [
            [
                Tag(self.vocabulary[place], round(score, 4))
                for score, place in zip(row_scores, row_places, strict=True)
                if score >= self.threshold
            ]
            for row_scores, row_places in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def __call__(self, images: Sequence[Image.Image]) -> list[list[Tag]]:
        """Tags of pictures, best first."""
        return self.tags_of(self.scores_of(self.similarities(images))) if len(images) else []

    def tag_records(self, records: Sequence[Mapping[str, Any]]) -> list[list[Tag]]:
        """Tags of task records; a record without a picture has none."""
        places = [place for place, record in enumerate(records) if record["image"] is not None]
        tags: list[list[Tag]] = [[] for _ in records]
        found = self([open_image(records[place]["image"]) for place in places])
        for place, tags_of_image in zip(places, found, strict=True):
            tags[place] = tags_of_image
        return tags


@torch.no_grad()
def uncalibrated_scores(model: Any, similarities: torch.Tensor) -> torch.Tensor:
    """Scores that a model's own temperature and bias give to cosines (N, C)."""
    head = getattr(model, "head", model)
    scale, bias = head.logit_scale.exp(), getattr(head, "logit_bias", None)
    logits = scale * similarities + (0.0 if bias is None else bias)  # (N, C)
    # InfoNCE compares; its bias never learns and stays zero.
    return logits.softmax(-1) if bias is None or bool((bias == 0).all()) else logits.sigmoid()


def _unit(features: Any) -> torch.Tensor:
    # transformers' models return the vectors or an output that holds them, by version and family.
    vectors = features if isinstance(features, torch.Tensor) else features.pooler_output
    return torch.nn.functional.normalize(vectors.float(), dim=-1)


class DualEncoderTagger(ZeroShotTagger):
    """A [`ZeroShotTagger`] over a Poise dual encoder that knows its vocabulary, templates and calibration."""

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike, **options: Any) -> "DualEncoderTagger":
        """
        The tagger of a folder that `poise align` wrote.

        Args:
            folder (`str`): weights, processor and `tagger.json`.
            **options: in place of what `tagger.json` says, such as `threshold=0.3`; `trust_remote_code` for folders
                loaded without Poise.

        Raises:
            ValueError: the folder has no `tagger.json`.
        """
        from transformers import AutoModelForZeroShotImageClassification, AutoProcessor

        file = Path(folder) / TAGGER_FILE
        if not file.is_file():
            raise ValueError(
                f"tagger={str(folder)!r} holds no {TAGGER_FILE}: name the folder `model` of a run of poise align."
            )
        code = {"trust_remote_code": True} if options.pop("trust_remote_code", False) else {}
        settings = {**json.loads(file.read_text(encoding="utf-8")), **options}
        model = AutoModelForZeroShotImageClassification.from_pretrained(folder, **code)
        return cls(model, AutoProcessor.from_pretrained(folder, **code), **settings)

    def settings(self) -> dict[str, Any]:
        """What `tagger.json` says."""
        names = ("vocabulary", "templates", "temperature", "bias", "threshold", "max_tags")
        return {name: getattr(self, name) for name in names}

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Weights with their code, processor, and `tagger.json`."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        text = json.dumps(self.settings(), indent=2, ensure_ascii=False)
        (Path(folder) / TAGGER_FILE).write_text(text + "\n", encoding="utf-8")


class PrecomputedTags:
    """
    Tags that somebody wrote down, by the record's `id` or else by the name of its image file.

    Args:
        tags (`Mapping[str, Sequence]`): id or file name → (name, score) pairs.

    Raises:
        ValueError, TypeError: a tag is wrong; the message names whose.
    """

    def __init__(self, tags: Mapping[str, Sequence[Any]]):
        self.tags = {key: check_tags(own, f"tags of {key!r}") for key, own in tags.items()}

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]], source: str = "rows") -> "PrecomputedTags":
        """From rows with `tags` and `id` or `image` (a file), such as a `datasets` column."""
        tags: dict[str, Sequence[Any]] = {}
        for number, row in enumerate(rows, start=1):
            key = row.get("id") or row.get("image")
            if not isinstance(key, str) or "tags" not in row:
                raise ValueError(f'{source}, row {number}: give "tags" and "id" or "image", not {sorted(row)}.')
            tags[key if row.get("id") else Path(key).name] = row["tags"]
        return cls(tags)

    @classmethod
    def from_file(cls, path: str | os.PathLike) -> "PrecomputedTags":
        """
        From JSON lines such as `{"image": "photo.jpg", "tags": [["dog", 0.97]]}`.

        Raises:
            FileNotFoundError, ValueError: no such file, or a line that is no such object.
        """
        path, rows = Path(path), []
        if not path.is_file():
            raise FileNotFoundError(f"tagger={str(path)!r}: there is no such file of tags; check the path.")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                rows += [json.loads(line)] if line.strip() else []
            except json.JSONDecodeError as error:
                raise ValueError(f"{path.name} line {number}: not JSON ({error.msg}).") from None
        return cls.from_rows(rows, path.name)

    def tag_records(self, records: Sequence[Mapping[str, Any]]) -> list[list[Tag]]:
        """
        Raises:
            ValueError: a record is not among them.
        """
        found = []
        for record in records:
            image = record["image"]
            file = getattr(image, "filename", image)  # a decoded picture still knows its file
            name = Path(file).name if isinstance(file, str) and file else None
            key = next((key for key in (record.get("id"), name) if key in self.tags), None)
            if key is None:
                raise ValueError(
                    f"no tags were written down for record {record.get('id')!r} with the image {name!r}: add them, "
                    "with an empty list for a picture without tags."
                )
            found.append(self.tags[key])
        return found


class TaggedRecords(torch.utils.data.Dataset):
    """Task records whose tags come from a tagger, at the moment they are read."""

    def __init__(self, records: Any, tagger: Any):
        self.records, self.tagger = records, tagger

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        read = getattr(self.records, "__getitems__", None)
        records = [self.records[index] for index in indices] if read is None else read(list(indices))
        tags = self.tagger.tag_records(records)
        return [{**record, "tags": own} for record, own in zip(records, tags, strict=True)]


def load_tagger(name: str | os.PathLike) -> Any:
    """
    The tagger that a word of a recipe or a command line means: a folder of a dual encoder, or a JSON-lines file.

    Raises:
        FileNotFoundError, ValueError: it is neither.
    """
    return DualEncoderTagger.from_pretrained(name) if Path(name).is_dir() else PrecomputedTags.from_file(name)


__all__ = ["DualEncoderTagger", "PrecomputedTags", "TaggedRecords", "ZeroShotTagger", "load_tagger"]
