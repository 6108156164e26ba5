"""How similar records are to concepts, which are given by their names or by images of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

from ...processing.image_loading import open_image
from ...processing.taggers import ZeroShotTagger
from ..align.caption_pairs import caption_parts
from .encoder_states import TextStates, VisionStates
from .record_stream import Record, RecordStream

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def _at(states: Sequence[torch.Tensor], layer: int) -> torch.Tensor:
    """The states of a layer, embeddings first.

    Raises:
        ValueError: the encoder has no such layer.
    """
    if not -len(states) <= layer < len(states):
        raise ValueError(f"layer={layer}: the encoder has the layers 0 to {len(states) - 1}; -1 is the last")
    return states[layer]


class NamesAgainstCaptions:
    """
    Names of concepts against captions in a text encoder's mean token, the phrase of a caption that is nearest.

    Vectors are centred on the concepts' mean first: sentence vectors of one encoder all point the same way.

    Args:
        names (`Sequence[str]`): concepts.
        encoder ([`TextStates`]).
        template (`str`, *optional*, defaults to `"{}"`): sentence around a name.
        layer (`int`, *optional*, defaults to -1): of the encoder.
    """

    def __init__(self, names: Sequence[str], encoder: TextStates, template: str = "{}", layer: int = -1):
        self.names, self.encoder, self.layer = list(names), encoder, layer
        vectors = _at(encoder([template.format(name) for name in self.names]), layer)  # (C, D)
        self.centre = vectors.mean(0) if len(self.names) > 1 else torch.zeros_like(vectors[0])  # (D,)
        self.concepts = normalize(vectors - self.centre, dim=-1)  # (C, D)

    def __call__(self, stream: RecordStream, records: Sequence[Record]) -> torch.Tensor:
        """Similarities (n, C)."""
        texts = [[text for caption in r["captions"] for text in (caption, *caption_parts(caption))] for r in records]
        different = list(dict.fromkeys(text for own in texts for text in own))
        number = {text: place for place, text in enumerate(different)}
        vectors = normalize(self.encoder(different)[self.layer] - self.centre, dim=-1)  # (T, D)
        similarity = vectors @ self.concepts.T  # (T, C)
        return torch.stack([similarity[[number[text] for text in own]].amax(0) for own in texts])  # (n, C)


class PrototypesAgainstImages:
    """
    Prototypes against images in a vision encoder's mean patch: the mean of a few images of the concept.

    Args:
        folder (`str`): one folder of images per concept, named like it.
        encoder ([`VisionStates`]).
        layer (`int`, *optional*, defaults to -1): of the encoder.

    Raises:
        ValueError: there is no folder with images.
    """

    def __init__(self, folder: str | Path, encoder: VisionStates, layer: int = -1):
        self.encoder, self.layer = encoder, layer
        images = prototype_files(folder)
        vectors = torch.stack(
            [_at(encoder([open_image(file) for file in files]), layer).mean(0) for files in images.values()]
        )  # (C, D)
        self.names = list(images)
        self.centre = vectors.mean(0) if len(self.names) > 1 else torch.zeros_like(vectors[0])  # (D,)
        self.concepts = normalize(vectors - self.centre, dim=-1)  # (C, D)

    def __call__(self, stream: RecordStream, records: Sequence[Record]) -> torch.Tensor:
        """Similarities (n, C)."""
        vectors = self.encoder([stream.image(record) for record in records])[self.layer]  # (n, D)
        return normalize(vectors - self.centre, dim=-1) @ self.concepts.T  # (n, C)


class NamesAgainstImages:
    """
    Names against images in a shared space: an aligned dual encoder, CLIP or SigLIP looks at the pool.

    Args:
        tagger ([`ZeroShotTagger`]): its vocabulary are the concepts.
    """

    def __init__(self, tagger: ZeroShotTagger):
        self.tagger, self.names = tagger, tagger.vocabulary

    def __call__(self, stream: RecordStream, records: Sequence[Record]) -> torch.Tensor:
        """Similarities (n, C)."""
        return self.tagger.similarities([stream.image(record) for record in records]).cpu()


def prototype_files(folder: str | Path) -> dict[str, list[Path]]:
    """Concept → its images; `red_square/` is the concept "red square"."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"prototypes={str(folder)!r} is no folder: give one with a sub-folder of images per concept")
    found: dict[str, list[Path]] = {}
    for own in sorted(path for path in folder.iterdir() if path.is_dir()):
        files = sorted(path for path in own.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        if files:
            found[" ".join(own.name.replace("_", " ").split())] = files
    if not found:
        raise ValueError(f"prototypes={str(folder)!r} holds no sub-folder with images ({', '.join(IMAGE_SUFFIXES)})")
    return found


def shared_space(folder: str, names: Sequence[str], templates: Sequence[str], device: str) -> Any:
    """[`NamesAgainstImages`] of a dual encoder's, CLIP's or SigLIP's folder or Hub id."""
    from transformers import AutoModelForZeroShotImageClassification, AutoProcessor

    model = AutoModelForZeroShotImageClassification.from_pretrained(folder).to(device)
    return NamesAgainstImages(ZeroShotTagger(model, AutoProcessor.from_pretrained(folder), names, templates))
