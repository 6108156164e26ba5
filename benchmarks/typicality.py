"""Which statistics of a frozen tower tell a broken image from a surprising one: `python benchmarks/typicality.py`.

Two detectors are fitted to clean training scenes and asked about images that fail in ways they never saw: the
Mahalanobis distance of mean and log variance of the last layer's tokens, and that of the activation profile. Printed is
the mean weight (1 = trusted, 0 = replaced) per condition, and the share of images with a weight below one half.

`--fit 'photos/train/*.jpg' --ask 'photos/other/*.jpg'` asks the same of photos, in place of drawn scenes, with the same
shipped tower, which sees them at 48 pixels: are sound photos from elsewhere trusted, and damaged ones seen? Beside the
weights stands how often a damaged photo is less typical than a sound one (AUC).
"""

import argparse
from collections.abc import Sequence
from glob import glob

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

from poise.modeling.activation_profile import activation_profile
from poise.modeling.typicality import Typicality
from poise.processing.degradations.degradations import degrade_image
from poise.processing.scenes.scenes import Scenes
from poise.training.backbone_loading import tiny_backbone_path

CONDITIONS = {
    "clean": ("test", {}),
    "colours against the prior": ("prior_broken", {}),
    **{
        f"{name} {severity}": ("test", {"image_degradation": name, "severity": severity})
        for name in ("noise", "blur", "jpeg", "occlusion", "low_light", "blank")
        for severity in (1, 3, 5)
    },
}


@torch.no_grad()
def statistics_of(tower, image_processor, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
    """Both detectors' vectors for every image, (n, E) each."""
    last, profile = [], []
    for start in range(0, len(images), 250):
        pixels = image_processor(images[start : start + 250], return_tensors="pt")["pixel_values"]  # (N, 3, H, W)
        outputs = tower(pixels, output_hidden_states=True)
        deep = outputs.last_hidden_state  # (N, P, Dv)
        last.append(torch.cat([deep.mean(1), deep.var(1, unbiased=False).clamp_min(1e-8).log()], dim=-1))
        profile.append(activation_profile(outputs.hidden_states))
    return {"last layer": torch.cat(last), "activation profile": torch.cat(profile)}


def drawn(split: str, size: int, seed: int, **settings) -> list[Image.Image]:
    return [record["image"] for record in Scenes(split, size=size, seed=seed, **settings).__getitems__(range(size))]


def photos(pattern: str) -> list[Image.Image]:
    """The files that match, small enough to be held, in RGB."""
    found = []
    for file in sorted(glob(pattern)):
        image = Image.open(file).convert("RGB")
        image.thumbnail((160, 160))
        found.append(image)
    if not found:
        raise SystemExit(f"{pattern!r} matches no file")
    return found


def fitted(rows: torch.Tensor) -> Typicality:
    """A detector that has seen these training rows, (n, E)."""
    detector = Typicality(rows.shape[1], slope=6.0, quantile=0.999).train()
    for part in rows.split(64):
        detector.observe(part)
    return detector.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=int, default=4000, help="training scenes")
    parser.add_argument("--test", type=int, default=300, help="scenes per condition")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fit", help="photos in place of training scenes")
    parser.add_argument("--ask", help="photos in place of test scenes, needed with --fit")
    args = parser.parse_args()
    folder = tiny_backbone_path("vision")
    tower, image_processor = AutoModel.from_pretrained(folder).eval(), AutoImageProcessor.from_pretrained(folder)
    train = photos(args.fit) if args.fit else drawn("train", args.train, args.seed)
    detectors = {name: fitted(rows) for name, rows in statistics_of(tower, image_processor, train).items()}
    if args.fit:
        sound = photos(args.ask)
        conditions = {"sound": sound}
        for name, (_, settings) in CONDITIONS.items():
            if settings:
                damage, severity = settings["image_degradation"], settings["severity"]
                conditions[name] = [
                    degrade_image(image, damage, severity, sample_id=str(index)) for index, image in enumerate(sound)
                ]
    else:
        conditions = {
            name: drawn(split, args.test, args.seed, **settings) for name, (split, settings) in CONDITIONS.items()
        }
    report(tower, image_processor, detectors, conditions)


def report(tower, image_processor, detectors: dict[str, Typicality], conditions: dict[str, list[Image.Image]]) -> None:
    """Mean weight, share below one half and AUC against the first condition, one row a condition."""
    print("mean weight (share below 0.5) and AUC against the first row\n")
    print(f"| {'condition':<26} |" + "".join(f" {name} ({d.mean.numel()} numbers) |" for name, d in detectors.items()))
    print("|---|" + "---|" * len(detectors))
    sound: dict[str, torch.Tensor] = {}
    for condition, images in conditions.items():
        cells = ""
        for name, rows in statistics_of(tower, image_processor, images).items():
            weight, strange = detectors[name](rows), detectors[name].deviation(rows)  # (n,), (n,)
            reference = sound.setdefault(name, strange)
            area = (strange[:, None] > reference).float().mean() + (strange[:, None] == reference).float().mean() / 2
            cells += f" {weight.mean():.2f} ({(weight < 0.5).float().mean():.2f}) {area:.2f} |"
        print(f"| {condition:<26} |{cells}")


if __name__ == "__main__":
    main()
