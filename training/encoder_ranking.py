"""Which frozen encoders, at which layers, already arrange the same pairs alike: CKA of every combination."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from poise.training.caption_pairs import CaptionPairs
from poise.training.unbiased_cka import SMALLEST_BATCH, MiniBatchCKA

VisionReader = Callable[[Sequence[Image.Image]], list[torch.Tensor]]
TextReader = Callable[[Sequence[str]], list[torch.Tensor]]


@dataclass(frozen=True)
class RankedPair:
    """A vision encoder and a text encoder at a layer each (0 is the embeddings), and their CKA."""

    vision: str
    vision_layer: int
    text: str
    text_layer: int
    cka: float


def rank_encoders(
    vision: Mapping[str, VisionReader],
    text: Mapping[str, TextReader],
    pairs: CaptionPairs,
    samples: int = 1024,
    batch_size: int = 128,
) -> list[RankedPair]:
    """
    Every layer of every vision encoder against every layer of every text encoder, the most alike first.

    Args:
        vision, text: name → reader, see `encoder_states`.
        pairs ([`CaptionPairs`]): the first caption of each picture is read.
        samples (`int`, *optional*, defaults to 1024): pictures, at most.
        batch_size (`int`, *optional*, defaults to 128): all that is in memory; a rest that is smaller is left out.

    Raises:
        ValueError: fewer than four pictures in a batch.
    """
    samples = check_batches(pairs, samples, batch_size)
    batch_size = min(batch_size, samples)
    captions, cka = pairs.captions, MiniBatchCKA()
    keys: dict[str, tuple[str, int]] = {}
    for start in tqdm(range(0, samples - batch_size + 1, batch_size), desc="ranking", unit="batch", disable=None):
        rows = range(start, start + batch_size)
        pictures, words = pairs.pictures(rows), [captions[row][0] for row in rows]
        states: list[dict[str, torch.Tensor]] = [{}, {}]
        for side, (readers, inputs) in enumerate(((vision, pictures), (text, words))):
            for name, reader in readers.items():
                for layer, values in enumerate(reader(inputs)):
                    key = f"{side} {name} {layer}"
                    keys[key], states[side][key] = (name, layer), values
        cka.add(states[0], states[1])
    ranking = [RankedPair(*keys[left], *keys[right], score) for (left, right), score in cka.scores().items()]
    return sorted(ranking, key=lambda pair: -pair.cka)


def check_batches(pairs: CaptionPairs, samples: int, batch_size: int) -> int:
    """How many pictures there are to compare.

    Raises:
        ValueError: fewer than four at once.
    """
    samples = min(samples, len(pairs))
    if min(batch_size, samples) < SMALLEST_BATCH:
        raise ValueError(
            f"batch_size={batch_size} of samples={samples} pictures: CKA compares at least {SMALLEST_BATCH} at once, "
            "give more of both"
        )
    return samples


def best_by_pair(ranking: Sequence[RankedPair]) -> list[RankedPair]:
    """Of every combination of encoders its best layers, the best combination first."""
    found: dict[tuple[str, str], RankedPair] = {}
    for pair in ranking:
        found.setdefault((pair.vision, pair.text), pair)
    return list(found.values())


def draw_ranking(ranking: Sequence[RankedPair], path: str | Path) -> None:
    """
    A heat map of layers for each combination of encoders, vision downwards and text sideways, as PNG.

    The best layers of each are framed, the best of all filled.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Rectangle

    visions, texts = (list(dict.fromkeys(getattr(pair, side) for pair in ranking)) for side in ("vision", "text"))
    figure, axes = plt.subplots(
        len(visions), len(texts), figsize=(1.2 + 3.0 * len(texts), 0.9 + 2.7 * len(visions)), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    best, highest = ranking[0], max(0.05, ranking[0].cka)
    for row, vision in enumerate(visions):
        for column, text in enumerate(texts):
            own = [pair for pair in ranking if (pair.vision, pair.text) == (vision, text)]
            grid = torch.zeros(1 + max(p.vision_layer for p in own), 1 + max(p.text_layer for p in own))
            for pair in own:
                grid[pair.vision_layer, pair.text_layer] = pair.cka
            here = axes[row, column]
            picture = here.imshow(grid, vmin=0, vmax=highest, cmap="Blues", origin="lower", aspect="auto")
            for pair in own:
                dark = pair.cka > 0.6 * highest
                here.text(
                    pair.text_layer, pair.vision_layer, f"{pair.cka:.2f}", ha="center", va="center", fontsize=8,
                    color="white" if dark else "#1f2937",
                )  # fmt: skip
            corner = (own[0].text_layer - 0.5, own[0].vision_layer - 0.5)
            color = "#d97706" if own[0] is best else "#6b7280"
            here.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=color, linewidth=2.5))
            here.set_title(f"{vision}  ×  {text}", fontsize=9)
            here.set_xticks(range(grid.shape[1]))
            here.set_yticks(range(grid.shape[0]))
            here.set_xlabel("text layer", fontsize=8)
            here.set_ylabel("vision layer", fontsize=8)
    figure.colorbar(picture, ax=axes, shrink=0.7, label="unbiased linear CKA")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
