"""Taggers: what gives an image its tags. All of them answer `tag_records(records) -> list of tags per record`.

`ZeroShotTagger` asks any CLIP, SigLIP or Poise dual encoder about a vocabulary; `DualEncoderTagger` is the one that
`poise align` writes, with its vocabulary and calibration beside the weights. (`PrecomputedTags`, in
`records/tagged_records.py`, looks up what another tagger wrote down.)
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from .image_loading import open_image
from .tags import Tag

TAGGER_FILE = "tagger.json"


def check_tagger(
    vocabulary: Sequence[str],
    templates: Sequence[str],
    threshold: float,
    max_tags: int,
    temperature: float | None = None,
    bias: float | None = None,
) -> list[str]:
    """The names of a vocabulary as a tagger gives them. It is asked before a tagger's model is trained, too.

    Raises:
        ValueError: an empty or repeated vocabulary, no template or one without `{}`, a threshold outside [0, 1], half a
            calibration.
    """
    names = [" ".join(name.split()) for name in vocabulary]
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if not names or "" in names or twice is not None:
        problem = "is empty" if not names else "holds an empty name" if "" in names else f"holds {twice!r} twice"
        raise ValueError(f"vocabulary {problem}: give every tag once.")
    if isinstance(templates, str) or not templates:
        raise ValueError(f"templates={templates!r} must be a list of sentences with {{}}, the place of the tag's name.")
    for template in templates:
        if not isinstance(template, str) or "{}" not in template:
            raise ValueError(f"templates holds {template!r} without {{}}, the place of the tag's name.")
    check_limits(threshold, max_tags)
    if (temperature is None) != (bias is None) or (temperature is not None and temperature <= 0):
        raise ValueError(f"temperature={temperature}, bias={bias}: give both or neither, the temperature above 0.")
    return names


def check_limits(threshold: float, max_tags: int) -> None:
    """
    Raises:
        ValueError: a threshold outside [0, 1], or no tag at most.
    """
    if not 0.0 <= threshold <= 1.0:
        raise ValueError(f"threshold={threshold} must lie in [0, 1].")
    if max_tags < 1:
        raise ValueError(f"max_tags={max_tags} must be 1 or more.")


def tags_of_records(
    tag: Callable[[list[Image.Image]], Sequence[list[Tag]]], records: Sequence[Mapping[str, Any]]
) -> list[list[Tag]]:
    """What `tag` says of the images of task records, all at once; a record without an image has no tags."""
    places = [place for place, record in enumerate(records) if record["image"] is not None]
    tags: list[list[Tag]] = [[] for _ in records]
    found = tag([open_image(records[place]["image"]) for place in places])
    for place, own in zip(places, found, strict=True):
        tags[place] = own
    return tags


class ZeroShotTagger:
    """
    Scores every name of a vocabulary by the similarity of its text to the image.

    Without a calibration the model's own logits are turned into scores: by a sigmoid where it learned so (SigLIP), else
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

    Examples:
        >>> model = AutoModel.from_pretrained("openai/clip-vit-base-patch32")  # doctest: +SKIP
        >>> processor = AutoProcessor.from_pretrained("openai/clip-vit-base-patch32")  # doctest: +SKIP
        >>> tagger = ZeroShotTagger(model, processor, ["dog", "ball"], threshold=0.0)
        >>> [len(tags) for tags in tagger([image])]
        [2]
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
        names = check_tagger(vocabulary, templates, threshold, max_tags, temperature, bias)
        self.model, self.processor, self.vocabulary, self.templates = model.eval(), processor, names, tuple(templates)
        self.temperature, self.bias, self.threshold, self.max_tags = temperature, bias, threshold, max_tags
        self.max_text_length = max_text_length or getattr(model.config, "max_text_length", None)
        self._tag_embeds: torch.Tensor | None = None

    def settings(self) -> dict[str, Any]:
        """What a tagger is besides its model and processor; `tagger.json` holds it."""
        names = ("vocabulary", "templates", "temperature", "bias", "threshold", "max_tags")
        return {name: getattr(self, name) for name in names}

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
        """Cosines of images and tags (N, C)."""
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
        """Tags of images, best first."""
        return self.tags_of(self.scores_of(self.similarities(images))) if len(images) else []

    def tag_records(self, records: Sequence[Mapping[str, Any]]) -> list[list[Tag]]:
        """Tags of task records; a record without an image has none."""
        return tags_of_records(self, records)


@torch.no_grad()
def uncalibrated_scores(model: Any, similarities: torch.Tensor) -> torch.Tensor:
    """Scores that a model's own temperature and bias give to cosines (N, C)."""
    head, config = getattr(model, "head", model), model.config
    logits = head.logit_scale.exp() * similarities  # (N, C)
    if getattr(config, "loss_type", None) == "sigmoid" or "siglip" in config.model_type:
        return (logits + head.logit_bias).sigmoid()
    return logits.softmax(-1)


def _unit(features: Any) -> torch.Tensor:
    # transformers' models return the vectors or an output that holds them, by version and family.
    vectors = features if isinstance(features, torch.Tensor) else features.pooler_output
    return torch.nn.functional.normalize(vectors.float(), dim=-1)


class DualEncoderTagger(ZeroShotTagger):
    """A [`ZeroShotTagger`] over a Poise dual encoder that knows its vocabulary, templates and calibration.

    Examples:
        >>> tagger = DualEncoderTagger.from_pretrained("outputs/align/model", threshold=0.0)
        >>> name, score = tagger([image])[0][0]
    """

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

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Weights with their code, processor, and `tagger.json`."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        text = json.dumps(self.settings(), indent=2, ensure_ascii=False)
        (Path(folder) / TAGGER_FILE).write_text(text + "\n", encoding="utf-8")


__all__ = ["DualEncoderTagger", "ZeroShotTagger", "uncalibrated_scores"]
