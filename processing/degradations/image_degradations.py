"""Degradations of images, severity 1–5, for PIL images of any size: what can happen between a lens and a model.

Each function takes (image, severity, rng, donor) and returns an RGB image. The random numbers do not depend on the
severity, so a stronger severity is the same draw made worse: the occluded region grows, the noise is scaled. The
kinds and the five steps follow ImageNet-C (Hendrycks & Dietterich 2019, section 4); sizes that are lengths
are shares of the shorter side, so that a 48-pixel scene and a photograph suffer alike.
"""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter


def _as_image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def _noise(image: Image.Image, severity: int, rng: np.random.Generator, donor: Image.Image | None) -> Image.Image:
    """White Gaussian noise of the given standard deviation in levels of 255."""
    deviation = (12, 25, 45, 75, 120)[severity - 1]
    pixels = np.asarray(image, dtype=np.float32)  # (H, W, 3)
    return _as_image(pixels + deviation * rng.standard_normal(pixels.shape, dtype=np.float32))


def _blur(image: Image.Image, severity: int, rng: np.random.Generator, donor: Image.Image | None) -> Image.Image:
    """Gaussian blur; the radius is a share of the shorter side."""
    share = (0.012, 0.025, 0.045, 0.07, 0.11)[severity - 1]
    return image.filter(ImageFilter.GaussianBlur(share * min(image.size)))


def _jpeg(image: Image.Image, severity: int, rng: np.random.Generator, donor: Image.Image | None) -> Image.Image:
    """JPEG compression at low quality, chroma at half resolution."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=(40, 25, 15, 8, 3)[severity - 1], subsampling=2)
    return Image.open(buffer).convert("RGB")


def _occlusion(image: Image.Image, severity: int, rng: np.random.Generator, donor: Image.Image | None) -> Image.Image:
    """A rectangle of one random colour hides a share of the image; its middle stays while it grows."""
    area = (0.1, 0.2, 0.35, 0.5, 0.7)[severity - 1]
    middle, stretch = rng.random(2), np.exp(rng.uniform(-0.3, 0.3))
    color = tuple(int(level) for level in rng.integers(0, 256, 3))
    width, height = min(1.0, np.sqrt(area) * stretch), min(1.0, np.sqrt(area) / stretch)
    width, height = max(width, area / height), max(height, area / width)  # a side cut at the rim gives to the other
    left, top = middle[0] * (1 - width), middle[1] * (1 - height)
    box = [
        round(v)
        for v in (left * image.width, top * image.height, (left + width) * image.width, (top + height) * image.height)
    ]
    covered = image.copy()
    covered.paste(color, tuple(box))
    return covered


def _low_light(image: Image.Image, severity: int, rng: np.random.Generator, donor: Image.Image | None) -> Image.Image:
    """Fewer photons: darker, with shot noise that grows as the light goes, and the sensor's own noise."""
    gain = (0.6, 0.4, 0.25, 0.15, 0.08)[severity - 1]
    light = np.asarray(image, dtype=np.float32) * gain  # (H, W, 3)
    deviation = np.sqrt(0.25 * light + 4.0 * (1 - gain))
    return _as_image(light + deviation * rng.standard_normal(light.shape, dtype=np.float32))


def _blank(image: Image.Image, severity: int, rng: np.random.Generator, donor: Image.Image | None) -> Image.Image:
    """The image fades to its own mean colour; at severity 5 nothing else is left."""
    fade = (0.6, 0.8, 0.9, 0.97, 1.0)[severity - 1]
    pixels = np.asarray(image, dtype=np.float32)  # (H, W, 3)
    return _as_image(pixels + fade * (pixels.mean(axis=(0, 1)) - pixels))


def _swapped_image(
    image: Image.Image, severity: int, rng: np.random.Generator, donor: Image.Image | None
) -> Image.Image:
    """Another image instead, for a share severity/5 of the samples; those swapped at 2 are swapped at 3, too."""
    if donor is None:
        raise ValueError("donor=None, but 'swapped_image' needs the other image: pass donor=another sample's image")
    return donor.convert("RGB") if rng.random() < severity / 5 else image


IMAGE_DEGRADATIONS: dict[str, Callable[[Image.Image, int, np.random.Generator, Image.Image | None], Image.Image]] = {
    "noise": _noise,
    "blur": _blur,
    "jpeg": _jpeg,
    "occlusion": _occlusion,
    "low_light": _low_light,
    "blank": _blank,
    "swapped_image": _swapped_image,
}
