"""The tiny vision tower: SigLIP's architecture without its pooling head, pretrained on its own labels alone.

Labels: for every patch, the shape and the colour in the patch's grid cell ("none" where it is empty) and the patch's
own place. Scenes have no prior here (prior strength 0) and no degradation, so the features tell shape, colour and place
apart without knowing which go together, and have never met a bad image.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from transformers import SiglipImageProcessorPil, SiglipVisionConfig, SiglipVisionModel

from ...processing.scenes.drawing import CELL_SIZE, GRID, IMAGE_SIZE
from ...processing.scenes.layout import COLORS, SHAPES
from ...processing.scenes.scenes import Scenes
from .corpus import CORPUS_SIZE
from .pretraining import linear_probe, pretrain

PATCH_SIZE = 8
BATCH = 64
PROBE_SCENES = {"train": 768, "test": 256}
_PATCHES = IMAGE_SIZE // PATCH_SIZE  # a side
_CELL_OF_PATCH = (
    np.arange(_PATCHES)[:, None] * PATCH_SIZE // CELL_SIZE * GRID + np.arange(_PATCHES) * PATCH_SIZE // CELL_SIZE
).reshape(-1)  # (36,)


def vision_config() -> SiglipVisionConfig:
    """Four layers of width 96 on 48×48 pixels in patches of 8: 36 tokens."""
    return SiglipVisionConfig(
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        vision_use_head=False,
    )


def image_processor() -> SiglipImageProcessorPil:
    """Resizes to 48×48 and maps levels to [-1, 1]; PIL only."""
    return SiglipImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_convert_rgb=True
    )


class PatchLabels(nn.Module):
    """Linear readers of a patch token: [B, 36, D] -> shape [B, 36, 9], colour [B, 36, 9], place [B, 36, 36]."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.shape = nn.Linear(hidden_size, len(SHAPES) + 1)
        self.color = nn.Linear(hidden_size, len(COLORS) + 1)
        self.place = nn.Linear(hidden_size, _PATCHES**2)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.shape(tokens), self.color(tokens), self.place(tokens)


def labelled_patches(scenes: Scenes, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pixels (B, 3, 48, 48) in [-1, 1] and shape and colour labels (B, 36), 0 for none."""
    batch = scenes.batch(indices)
    pixels = torch.from_numpy(batch["images"]).permute(0, 3, 1, 2).float() / 127.5 - 1  # (B, 3, 48, 48)
    shape, color = (torch.from_numpy(batch[name][:, _CELL_OF_PATCH] + 1) for name in ("cell_shape", "cell_color"))
    return pixels, shape, color


def train_vision_tower(steps: int, seed: int = 0) -> tuple[SiglipVisionModel, PatchLabels]:
    """A tower and the linear readers that it was trained with."""
    torch.manual_seed(seed)
    tower = SiglipVisionModel(vision_config())
    readers = PatchLabels(tower.config.hidden_size)
    scenes = Scenes("train", size=CORPUS_SIZE, seed=seed + 1, prior_strength=0.0, tasks=["caption"])

    def batches() -> Iterator[tuple[torch.Tensor, ...]]:
        first = 0
        while True:
            yield labelled_patches(scenes, np.arange(first, first + BATCH))
            first += BATCH

    def loss_of(batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        pixels, shape, color = batch
        tokens = tower(pixel_values=pixels).last_hidden_state  # (B, 36, D)
        shape_logits, color_logits, place_logits = readers(tokens)
        # Three cells of four are empty; without weights "none" would be learnt long before anything else.
        weight = torch.tensor([0.25] + [1.0] * 8)
        place = torch.arange(_PATCHES**2).expand(len(pixels), -1)  # (B, 36)
        return (
            nn.functional.cross_entropy(shape_logits.flatten(0, 1), shape.flatten(), weight)
            + nn.functional.cross_entropy(color_logits.flatten(0, 1), color.flatten(), weight)
            + 0.2 * nn.functional.cross_entropy(place_logits.flatten(0, 1), place.flatten())
        )

    pretrain([tower, readers], loss_of, batches(), steps, learning_rate=1.5e-3, name="vision")
    return tower, readers


def probe_accuracy(tower: SiglipVisionModel) -> dict:
    """How well a fresh linear reader tells shape and colour of the occupied cells from single frozen patch tokens.

    The reader is a ridge regression onto one-hot labels, solved in closed form, fitted on scenes of the train split and
    scored on scenes of the test split, both without a prior. Chance is 1/9.
    """
    tower.eval()
    features, labels = {}, {}
    for split, count in PROBE_SCENES.items():
        scenes = Scenes(split, size=count, seed=7, prior_strength=0.0, tasks=["caption"])
        pixels, shape, color = labelled_patches(scenes, np.arange(count))
        with torch.no_grad():
            parts = [tower(pixel_values=part).last_hidden_state for part in pixels.split(128)]
        features[split] = torch.cat(parts).flatten(0, 1)  # (N * 36, D)
        labels[split] = {"shape": shape.flatten(), "color": color.flatten()}
    result = {}
    for name, target in labels["train"].items():
        said = linear_probe(features["train"], nn.functional.one_hot(target, 9), features["test"])  # (N * 36, 9)
        truth = labels["test"][name]
        hits = said.argmax(dim=1) == truth
        result[f"{name}_probe"] = hits[truth > 0].double().mean().item()
        if name == "shape":
            result["empty_probe"] = hits[truth == 0].double().mean().item()
    return result
