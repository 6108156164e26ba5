"""The 15 corruptions of ImageNet-C in five severities, for PIL images of any size (numpy and Pillow alone).

Hendrycks & Dietterich, arXiv 1903.12261, section 4 and appendix B; the constants are those of the benchmark's published
table, which was made for images whose shorter side has 224 pixels. Constants that are lengths (radii, displacements,
crystal sizes) are scaled to the image's shorter side, so that a 48-pixel scene and a photograph suffer alike. Two parts
differ from the published set and are not comparable with it digit by digit: frost is drawn (the benchmark overlays six
photographs), and motion is a straight line of taps (the benchmark calls ImageMagick).

Each function takes (image, severity, rng, donor) and returns an RGB image of the same size.
"""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

REFERENCE_SIDE = 224  # pixels of the shorter side that the published constants are meant for


def _levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), dtype=np.float32) / 255  # (H, W, 3) in [0, 1]


def _as_image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8))


def _scale(image: Image.Image) -> float:
    return min(image.size) / REFERENCE_SIDE


def _gaussian_noise(image, severity, rng, donor=None):
    deviation = (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    pixels = _levels(image)  # (H, W, 3)
    return _as_image(pixels + deviation * rng.standard_normal(pixels.shape, dtype=np.float32))


def _shot_noise(image, severity, rng, donor=None):
    """Photon counts: Poisson with so many photons at full brightness."""
    photons = (60, 25, 12, 5, 3)[severity - 1]
    return _as_image(rng.poisson(_levels(image) * photons) / photons)


def _impulse_noise(image, severity, rng, donor=None):
    """Salt and pepper, channel by channel."""
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    pixels = _levels(image).copy()  # (H, W, 3)
    draw = rng.random(pixels.shape)  # (H, W, 3)
    pixels[draw < share] = 1.0
    pixels[draw < share / 2] = 0.0
    return _as_image(pixels)


def _defocus_blur(image, severity, rng, donor=None):
    """A disk, softened by a small Gaussian."""
    radius, soften = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[severity - 1]
    return _as_image(_convolved(_levels(image), _disk(radius * _scale(image), soften * _scale(image))))


def _glass_blur(image, severity, rng, donor=None):
    """Pixels change places with near ones, between two Gaussian blurs."""
    sigma, reach, rounds = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[severity - 1]
    scale = _scale(image)
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(sigma * scale)), dtype=np.float32) / 255  # (H, W, 3)
    height, width = pixels.shape[:2]
    rows, columns = np.mgrid[:height, :width]
    for _ in range(rounds):
        # All at once, from the round before; the benchmark's loop swaps pixel by pixel, which Python does slowly.
        down, right = (np.rint(rng.uniform(-reach, reach, (height, width)) * max(scale, 1 / reach)) for _ in range(2))
        pixels = pixels[(rows + down).clip(0, height - 1).astype(int), (columns + right).clip(0, width - 1).astype(int)]
    return _as_image(pixels).filter(ImageFilter.GaussianBlur(sigma * scale))


def _motion_blur(image, severity, rng, donor=None):
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[severity - 1]
    return _as_image(_moved(_levels(image), radius * _scale(image), sigma * _scale(image), rng.uniform(-45, 45)))


def _zoom_blur(image, severity, rng, donor=None):
    """Mean of the image and of what a zoom sees of it on the way in."""
    end, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[severity - 1]
    zooms = np.arange(1, end, step)
    frames = [_levels(image), *(_levels(_zoomed(image, float(zoom))) for zoom in zooms)]
    return _as_image(np.mean(frames, axis=0))


def _snow(image, severity, rng, donor=None):
    """Flakes driven by the wind over a whitened image."""
    mean, spread, zoom, threshold, radius, sigma, keep = (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[severity - 1]
    pixels, scale = _levels(image), _scale(image)  # (H, W, 3)
    height, width = pixels.shape[:2]
    size = max(1.0, zoom * scale)  # a flake covers at least one pixel
    small = rng.normal(mean, spread, (round(height / size) + 2, round(width / size) + 2))
    flakes = _resized(small, (round(small.shape[1] * size), round(small.shape[0] * size)))[:height, :width]  # (H, W)
    flakes = np.where(flakes < threshold, 0, flakes).clip(0, 1)[..., None].astype(np.float32)  # (H, W, 1)
    flakes = _moved(flakes, radius * scale, sigma * scale, rng.uniform(-135, -45))  # (H, W, 1)
    gray = pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32)  # (H, W)
    pale = keep * pixels + (1 - keep) * np.maximum(pixels, 1.5 * gray[..., None] + 0.5)  # (H, W, 3)
    return _as_image(pale + flakes + flakes[::-1, ::-1])


def _frost(image, severity, rng, donor=None):
    """Ice crystals on a pane: ridges of plasma, bluish white."""
    keep, frost = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[severity - 1]
    pixels = _levels(image)  # (H, W, 3)
    ridges = [1 - np.abs(2 * _plasma(pixels.shape[:2], decay, rng) - 1) for decay in (1.6, 1.9)]  # 2 × (H, W)
    crystals = np.maximum(*ridges) ** 4  # (H, W)
    ice = crystals[..., None] * np.array([0.85, 0.93, 1.0])  # (H, W, 3)
    return _as_image(keep * pixels + frost * ice)


def _fog(image, severity, rng, donor=None):
    amount, decay = ((1.5, 2), (2.0, 2), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))[severity - 1]
    pixels = _levels(image)  # (H, W, 3)
    brightest = pixels.max()
    foggy = pixels + amount * _plasma(pixels.shape[:2], decay, rng)[..., None]  # (H, W, 3)
    return _as_image(foggy * brightest / (brightest + amount))


def _brightness(image, severity, rng, donor=None):
    """The value of HSV rises; hue and saturation stay."""
    added = (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1]
    pixels = _levels(image)  # (H, W, 3)
    value = pixels.max(-1, keepdims=True)  # (H, W, 1)
    raised = (value + added).clip(0, 1)  # (H, W, 1)
    return _as_image(np.where(value > 0, pixels * raised / np.maximum(value, 1e-6), raised))


def _contrast(image, severity, rng, donor=None):
    kept = (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1]
    pixels = _levels(image)  # (H, W, 3)
    mean = pixels.mean((0, 1))  # (3,)
    return _as_image(mean + kept * (pixels - mean))


def _elastic_transform(image, severity, rng, donor=None):
    """A random affine map of three corners, then a smooth random displacement."""
    strength, sigma, corner = (
        (488, 170.8, 24.4), (488, 19.52, 48.8), (12.2, 2.44, 4.88), (17.08, 2.44, 4.88), (29.28, 2.44, 4.88),
    )[severity - 1]  # fmt: skip
    pixels, scale = _levels(image), _scale(image)
    height, width = pixels.shape[:2]
    shift = rng.uniform(-corner, corner, (3, 2)) * scale  # (3, 2): what corners of the middle square move by
    side = 2 * (min(height, width) // 3)
    across, down = (shift[1] - shift[0]) / side, (shift[2] - shift[0]) / side  # (2,) each
    rows, columns = np.mgrid[:height, :width].astype(np.float32)  # (H, W) each
    y, x = rows - (height - side) / 2, columns - (width - side) / 2  # from the middle square's first corner
    from_rows = rows + shift[0, 0] + across[0] * x + down[0] * y
    from_columns = columns + shift[0, 1] + across[1] * x + down[1] * y
    for target in (from_rows, from_columns):
        target += strength * scale * _smoothed(rng.uniform(-1, 1, (height, width)), sigma * scale)
    return _as_image(sampled_at(pixels, from_rows, from_columns))


def _pixelate(image, severity, rng, donor=None):
    kept = (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1]
    small = image.resize((max(1, int(image.width * kept)), max(1, int(image.height * kept))), Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.NEAREST)


def _jpeg_compression(image, severity, rng, donor=None):
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=(25, 18, 15, 10, 7)[severity - 1])
    return Image.open(buffer).convert("RGB")


# ---- what these are made of -----------------------------------------------------------------------------------------


def _disk(radius: float, soften: float) -> np.ndarray:
    """A kernel (n, n) that sums to 1: a disk, sampled finely enough that a radius below one pixel still counts."""
    half = int(np.ceil(radius + 3 * soften)) + 1
    fine = 8  # sub-samples per pixel and axis
    places = (np.arange((2 * half + 1) * fine) + 0.5) / fine - half - 0.5
    inside = (np.hypot(places[:, None], places[None]) <= radius + soften / 2).astype(np.float32)
    kernel = inside.reshape(2 * half + 1, fine, 2 * half + 1, fine).mean((1, 3))
    return kernel / kernel.sum()


def _convolved(pixels: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """(H, W, C) by (n, n), with reflected borders, as a sum of shifted images."""
    half = len(kernel) // 2
    padded = np.pad(pixels, ((half, half), (half, half), (0, 0)), mode="symmetric")
    height, width = pixels.shape[:2]
    total = np.zeros_like(pixels)
    for down, right in np.argwhere(kernel > 0):
        total += kernel[down, right] * padded[down : down + height, right : right + width]
    return total


def _moved(pixels: np.ndarray, radius: float, sigma: float, degrees: float) -> np.ndarray:
    """Motion blur of (H, W, C): taps up to `radius` pixels to one side, weighted by a Gaussian."""
    taps = np.linspace(0, radius, max(2, int(np.ceil(2 * radius)) + 1))
    weights = np.exp(-(taps**2) / (2 * sigma**2))
    rows, columns = np.mgrid[: pixels.shape[0], : pixels.shape[1]].astype(np.float32)
    down, right = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    total = sum(
        weight * sampled_at(pixels, rows + tap * down, columns + tap * right)
        for tap, weight in zip(taps, weights, strict=True)
    )
    return total / weights.sum()


def _zoomed(image: Image.Image, zoom: float) -> Image.Image:
    width, height = image.width / zoom, image.height / zoom
    left, top = (image.width - width) / 2, (image.height - height) / 2
    return image.resize(image.size, Image.Resampling.BILINEAR, (left, top, left + width, top + height))


def sampled_at(pixels: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Bilinear samples of (H, W, C) at places (h, w), which are reflected into the image."""
    height, width = pixels.shape[:2]
    rows, columns = _reflected(rows, height), _reflected(columns, width)  # (h, w) each
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    below, beside = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    down, right = (rows - top)[..., None], (columns - left)[..., None]  # (h, w, 1)
    upper = (1 - right) * pixels[top, left] + right * pixels[top, beside]  # (h, w, C)
    lower = (1 - right) * pixels[below, left] + right * pixels[below, beside]  # (h, w, C)
    return (1 - down) * upper + down * lower


def _reflected(places: np.ndarray, size: int) -> np.ndarray:
    if size == 1:
        return np.zeros_like(places)
    period = 2 * (size - 1)
    folded = np.mod(places, period)
    return np.minimum(folded, period - folded).clip(0, size - 1)


def _smoothed(values: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian filter of (H, W) with reflected borders, row by row and column by column."""
    half = max(1, int(np.ceil(3 * sigma)))
    kernel = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * max(sigma, 1e-3) ** 2))
    kernel /= kernel.sum()
    for axis in (0, 1):
        size = values.shape[axis]
        places = _reflected(np.arange(-half, size + half), size).astype(int)
        padded = np.moveaxis(values, axis, 0)[places]
        values = np.moveaxis(sum(k * padded[i : i + size] for i, k in enumerate(kernel)), 0, axis)
    return values


def _plasma(shape: tuple[int, int], decay: float, rng: np.random.Generator) -> np.ndarray:
    """A cloud in [0, 1] (H, W): octaves of smooth noise, each `decay` times weaker than the coarser one."""
    total = np.zeros(shape)
    for octave in range(1, max(2, int(np.log2(max(shape)))) + 1):
        knots = rng.uniform(-1, 1, (2**octave + 1, 2**octave + 1))
        total += _resized(knots, (shape[1], shape[0])) * decay**-octave
    return (total - total.min()) / max(float(np.ptp(total)), 1e-6)


def _resized(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bicubic resizing of (h, w) floats to (width, height)."""
    image = Image.fromarray(values.astype(np.float32))
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC))


IMAGENET_C: dict[str, Callable] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "defocus_blur": _defocus_blur,
    "glass_blur": _glass_blur,
    "motion_blur": _motion_blur,
    "zoom_blur": _zoom_blur,
    "snow": _snow,
    "frost": _frost,
    "fog": _fog,
    "brightness": _brightness,
    "contrast": _contrast,
    "elastic_transform": _elastic_transform,
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg_compression,
}
