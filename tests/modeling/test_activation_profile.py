"""The activation profile: what it is by hand, what it does not look at, and that it tells broken from surprising."""

import math

import pytest
import torch
from transformers import AutoImageProcessor, AutoModel

from poise.modeling.activation_profile import NUM_STATISTICS, activation_profile, layer_statistics, profile_size
from poise.modeling.typicality import Typicality
from poise.processing.scenes.scenes import Scenes
from poise.training.backbone_loading import tiny_backbone_path


def test_statistics_by_hand():
    tokens = torch.randn(1, 7, 5)
    centre = tokens[0].mean(0)
    variances = [((tokens[0, :, d] - centre[d]) ** 2).mean().log().item() for d in range(5)]
    distances = [((token - centre) ** 2).sum().log().item() for token in tokens[0]]
    mean = sum(distances) / 7
    expected = [
        sum(variances) / 5,
        torch.tensor(variances).std().item(),
        (centre**2).mean().log().item(),
        torch.tensor(distances).std().item(),
        max(distances) - mean,
        min(distances) - mean,
    ]
    torch.testing.assert_close(layer_statistics(tokens)[0], torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_order_of_tokens_and_of_channels_does_not_matter():
    tokens = torch.randn(3, 9, 6)
    shuffled = tokens[:, torch.randperm(9)][..., torch.randperm(6)]
    torch.testing.assert_close(layer_statistics(tokens), layer_statistics(shuffled))


def test_louder_tokens_move_only_the_levels():
    tokens = torch.randn(2, 9, 6)
    moved = layer_statistics(2 * tokens) - layer_statistics(tokens)
    expected = torch.tensor([math.log(4), 0, math.log(4), 0, 0, 0]).expand(2, -1)
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-4)


def test_equal_tokens_are_finite():
    assert torch.isfinite(layer_statistics(torch.ones(1, 4, 3))).all()


def test_an_image_alone_and_in_a_batch():
    states = [torch.randn(4, 9, 6) for _ in range(3)]
    profile = activation_profile(states)
    assert profile.shape == (4, 3 * NUM_STATISTICS)
    torch.testing.assert_close(profile[2:3], activation_profile([s[2:3] for s in states]))


@pytest.fixture(scope="module")
def judged():
    """`judged(split, **degradation)`: mean weight of 60 scenes, after clean training scenes were observed."""
    folder = tiny_backbone_path("vision")
    tower, image_processor = AutoModel.from_pretrained(folder).eval(), AutoImageProcessor.from_pretrained(folder)

    @torch.no_grad()
    def profiles(scenes):
        images = [record["image"] for record in scenes.__getitems__(range(len(scenes)))]
        pixels = image_processor(images, return_tensors="pt")["pixel_values"]  # (N, 3, H, W)
        return activation_profile(tower(pixels, output_hidden_states=True).hidden_states)  # (N, 6L)

    detector = Typicality(profile_size(tower.config), slope=6.0, quantile=0.999).train()
    detector.observe(profiles(Scenes("train", size=1000)))
    detector.eval()
    return lambda split, **degradation: detector(profiles(Scenes(split, size=60, **degradation))).mean().item()


@pytest.mark.parametrize("split", ["test", "prior_broken"])
def test_sound_images_are_trusted_however_surprising(judged, split):
    assert judged(split) > 0.95


@pytest.mark.parametrize(("name", "severity"), [("noise", 3), ("low_light", 3), ("blank", 5), ("occlusion", 5)])
def test_broken_images_fade_though_none_was_ever_observed(judged, name, severity):
    assert judged("test", image_degradation=name, severity=severity) < 0.2
