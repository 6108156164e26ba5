"""Which frozen encoders, at which layers, already arrange the same pairs alike: CKA of every combination.

Linear CKA from mini-batches, without bias: how alike two encoders arrange the same samples.

Centred kernel alignment (Kornblith et al., arXiv 1905.00414) with the unbiased estimator of HSIC (Song et al. 2012,
equation 5), averaged over batches before the ratio is taken (Nguyen et al., arXiv 2010.15327, section 2), so that
neither the batch size nor the width of a representation moves it and memory holds one batch. arXiv 2409.19425, section
3, chooses encoder pairs by it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from ...evaluation.whole_files import whole_file
from ..align.caption_pairs import CaptionPairs

SMALLEST_BATCH = 4  # the estimator divides by n − 3


def unbiased_hsic(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """
    HSIC of kernels [..., n, n] of the same n samples, without bias → [...].

    Raises:
        ValueError: fewer than four samples.
    """
    n = first.shape[-1]
    if n < SMALLEST_BATCH:
        raise ValueError(f"{n} samples are too few for the unbiased HSIC: give at least {SMALLEST_BATCH}")
    first, second = _hollow(first), _hollow(second)  # [..., n, n] each
    trace = (first * second).sum((-1, -2))  # tr(K L) of symmetric K, L
    sums = first.sum((-1, -2)) * second.sum((-1, -2)) / ((n - 1) * (n - 2))
    rows = (first.sum(-1) * second.sum(-1)).sum(-1)  # 1ᵀ K L 1
    return (trace + sums - 2 * rows / (n - 2)) / (n * (n - 3))


def _hollow(kernel: torch.Tensor) -> torch.Tensor:
    """The kernel without its diagonal, which is what makes the plain estimator too large."""
    return kernel - torch.diag_embed(kernel.diagonal(dim1=-2, dim2=-1))


class MiniBatchCKA:
    """
    Collects batches of representations of the same samples by two families of encoders, and compares every pair.

    `add` takes the representations of one batch by name; `scores` gives the CKA of each name of the first family with
    each of the second.
    """

    def __init__(self) -> None:
        self.cross: dict[tuple[str, str], float] = {}
        self.own: dict[str, float] = {}
        self.batches = 0

    def add(self, first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> None:
        """
        Args:
            first, second: name → representations (n, d) of the n samples of this batch; d may differ by name. The two
                families share no name.
        """
        kernels = {name: _linear_kernel(values) for name, values in {**first, **second}.items()}
        for name, kernel in kernels.items():
            self.own[name] = self.own.get(name, 0.0) + float(unbiased_hsic(kernel, kernel))
        for left in first:
            for right in second:
                hsic = float(unbiased_hsic(kernels[left], kernels[right]))
                self.cross[left, right] = self.cross.get((left, right), 0.0) + hsic
        self.batches += 1

    def scores(self) -> dict[tuple[str, str], float]:
        """CKA by (name of the first family, name of the second); 0 where a representation does not vary at all."""
        result = {}
        for (left, right), hsic in self.cross.items():
            scale = (max(0.0, self.own[left]) * max(0.0, self.own[right])) ** 0.5
            result[left, right] = hsic / scale if scale > 0 else 0.0
        return result


def _linear_kernel(values: torch.Tensor) -> torch.Tensor:
    values = values.double()
    values = values - values.mean(0)  # the estimate does not change; rounding does
    # One scale for all entries: representations of large norm would otherwise cost digits.
    return values @ values.T / values.pow(2).mean().clamp_min(1e-30)  # (n, n)


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
        pairs ([`CaptionPairs`]): the first caption of each image is read.
        samples (`int`, *optional*, defaults to 1024): images, at most.
        batch_size (`int`, *optional*, defaults to 128): all that is in memory; a rest that is smaller is left out.

    Raises:
        ValueError: fewer than four images in a batch.
    """
    samples = check_batches(pairs, samples, batch_size)
    batch_size = min(batch_size, samples)
    captions, cka = pairs.captions, MiniBatchCKA()
    keys: dict[str, tuple[str, int]] = {}
    for start in tqdm(range(0, samples - batch_size + 1, batch_size), desc="ranking", unit="batch", disable=None):
        rows = range(start, start + batch_size)
        images, words = pairs.images(rows), [captions[row][0] for row in rows]
        states: list[dict[str, torch.Tensor]] = [{}, {}]
        for side, (readers, inputs) in enumerate(((vision, images), (text, words))):
            for name, reader in readers.items():
                for layer, values in enumerate(reader(inputs)):
                    key = f"{side} {name} {layer}"
                    keys[key], states[side][key] = (name, layer), values
        cka.add(states[0], states[1])
    ranking = [RankedPair(*keys[left], *keys[right], score) for (left, right), score in cka.scores().items()]
    return sorted(ranking, key=lambda pair: -pair.cka)


def check_batches(pairs: CaptionPairs, samples: int, batch_size: int) -> int:
    """How many images there are to compare.

    Raises:
        ValueError: fewer than four at once.
    """
    samples = min(samples, len(pairs))
    if min(batch_size, samples) < SMALLEST_BATCH:
        raise ValueError(
            f"batch_size={batch_size} of samples={samples} images: CKA compares at least {SMALLEST_BATCH} at once, "
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
            image = here.imshow(grid, vmin=0, vmax=highest, cmap="Blues", origin="lower", aspect="auto")
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
    figure.colorbar(image, ax=axes, shrink=0.7, label="unbiased linear CKA")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as unfinished:
        figure.savefig(unfinished, dpi=110)
    plt.close(figure)
