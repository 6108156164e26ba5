"""How far an image can be trusted: the tower's states of every family, and a detector that never saw damage."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_families import FAMILIES
from tiny_folders import llava
from transformers import AutoImageProcessor, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionModel

from poise.command_line import main
from poise.modeling.activation_profile import activation_profile
from poise.modeling.image_reliability import DISTRUSTED, ImageReliability, image_inputs, tower_states
from poise.processing.degradations.image_degradations import IMAGE_DEGRADATIONS
from poise.processing.scenes.scenes import Scenes

pytestmark = pytest.mark.numerics

# Patches that one image has in the tiny families: tiles side by side, no class token.
PATCHES = {"llava_next": 12, "llava_onevision": 12, "florence2": 49, "mllama": 16}
SIXTEEN = ("idefics3", "smolvlm", "internvl", "mistral3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "glm4v")
NOT_OF_THE_IMAGE = ("input_ids", "token_type_ids", "mm_token_type_ids", "decoder_input_ids", "qformer_input_ids")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_shows_the_states_of_its_tower(family):
    model, inputs = FAMILIES[family]()
    model.eval()
    inputs = {name: value for name, value in inputs.items() if name not in NOT_OF_THE_IMAGE}
    states = tower_states(model, inputs)
    expected = PATCHES.get(family, 16 if family in SIXTEEN else 4)
    assert len(states) >= 2 and states[0].shape[:2] == (1, expected)
    changed = {**inputs, "pixel_values": inputs["pixel_values"] * 0.5}
    profile, other = (activation_profile(tower_states(model, given)) for given in (inputs, changed))
    assert profile.shape == (1, 6 * len(states)) and profile.isfinite().all()
    if "blip" not in family:  # their weights start at 1e-10
        assert not torch.allclose(profile, other, atol=1e-4)


def test_a_class_token_is_no_patch():
    model, inputs = FAMILIES["llava"]()
    model.eval()
    pixels = inputs["pixel_values"]
    own = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    for found, given in zip(tower_states(model, {"pixel_values": pixels}), own, strict=True):
        torch.testing.assert_close(found, given[:, 1:])


class Seeing:
    """A tiny LLaVA whose vision tower has seen scenes, and a detector fitted to 400 of them."""

    def __init__(self, folder):
        tower = SiglipVisionModel.from_pretrained(folder)
        text = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
        config = LlavaConfig(
            text_config={**text, "num_attention_heads": 4, "vocab_size": 120},
            vision_config=tower.config.to_dict(),
            image_token_id=99,
            vision_feature_layer=-1,
        )
        self.model = LlavaForConditionalGeneration(config).eval()
        self.model.model.vision_tower.load_state_dict(tower.state_dict())
        self.processor = AutoImageProcessor.from_pretrained(folder)
        self.reliability = ImageReliability.fitted(self.model, self.processor, scenes("train", 400), origin={"n": 400})

    def trusts(self, images):
        return [self.reliability.trust(self.model, self.processor, image) for image in images]


def scenes(split, size):
    records = Scenes(split, size=size, tasks=("vqa",))
    return [record["image"] for record in records.__getitems__(list(range(size)))]


@pytest.fixture(scope="module")
def seeing(repository):
    return Seeing(repository / "training" / "backbones" / "vision")


@pytest.mark.slow
def test_damage_that_was_never_seen_is_told_from_scenes_that_were_not(seeing):
    rng = np.random.default_rng(0)
    for split in ("test", "prior_broken"):
        assert min(seeing.trusts(scenes(split, 25))) > DISTRUSTED
    images = scenes("test", 25)
    for name in ("noise", "low_light", "blank", "occlusion"):
        damaged = [IMAGE_DEGRADATIONS[name](image, 5, rng, None) for image in images]
        assert np.mean([trust < DISTRUSTED for trust in seeing.trusts(damaged)]) > 0.8, name


@pytest.mark.slow
def test_it_is_kept_beside_the_model(seeing, tmp_path):
    seeing.reliability.save_pretrained(tmp_path)
    loaded = ImageReliability.from_pretrained(tmp_path).eval()
    assert loaded.origin == {"n": 400} and loaded.model_type == "llava"
    image = scenes("test", 1)[0]
    assert loaded.trust(seeing.model, seeing.processor, image) == seeing.trusts([image])[0]
    with pytest.raises(ValueError, match="fitted to a 'llava' model, not 'paligemma'"):
        loaded.trust(FAMILIES["paligemma"]()[0], seeing.processor, image)


@pytest.mark.slow
def test_the_command_fits_checks_and_judges(tmp_path, capsys):
    model, statistics = llava(tmp_path / "model"), tmp_path / "trust"
    sound, dark = tmp_path / "sound.png", tmp_path / "dark.png"
    image = scenes("validation", 1)[0]
    image.save(sound)
    image.point(lambda value: value // 12).save(dark)
    command = ["fit-router", model, "--output", str(statistics), "--json", "--image", str(sound), str(dark)]
    assert main([*command, "--data", "scenes:train,size=405,tasks=vqa", "--check", "5"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 400 and found["data"].startswith("scenes:train")
    assert found["flagged"]["sound"] == 0.0 and found["flagged"]["noise_5"] == 1.0
    assert found["flagged"]["noise_1"] < 1.0 and "swapped_image_1" not in found["flagged"]
    assert found["trust"][str(sound)] > DISTRUSTED > found["trust"][str(dark)]
    assert main(command) == 0  # without --data: what was fitted before
    assert json.loads(capsys.readouterr().out)["trust"] == found["trust"]
    assert main(command[:4] + ["--image", str(sound), str(dark)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "unlike" not in first and "unlike" in second


def test_the_command_asks_for_what_it_needs(tmp_path, capsys):
    for options, part in (
        ([], "neither --data nor --image"),
        (["--image", str(tmp_path / "photo.png")], "holds no statistics"),
        (["--data", "scenes", "--check", "-1"], "--check -1"),
    ):
        assert main(["fit-router", "nowhere/at/all", "--output", str(tmp_path), *options]) == 1
        assert part in capsys.readouterr().err


def test_statistics_are_no_model(tmp_path, capsys):
    ImageReliability(6, "llava", origin={"data": "photos", "images": 400}).save_pretrained(tmp_path / "trust")
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    for line in (["look", "FOLDER", str(tmp_path / "image.png"), "what ?"], ["publish", "FOLDER", "--repo", "a/b"]):
        assert main([str(tmp_path / "trust") if word == "FOLDER" else word for word in line]) == 1
        assert "statistics of poise fit-router" in capsys.readouterr().err
    ImageReliability(6, "llava", origin={"data": "photos", "images": 400}).save_pretrained(
        tmp_path / "whole", model_card_kwargs={"model": "user/vlm", "flagged": {"sound": 0.0, "noise_5": 1.0}}
    )
    card = (tmp_path / "whole" / "README.md").read_text()
    assert "poise fit-router user/vlm" in card and "|---|---|\n| sound | 0.00 |\n| noise_5 | 1.00 |\n" in card
    card = (tmp_path / "trust" / "README.md").read_text()
    assert "over 400 sound\nimages of photos" in card and "--image" in card and "More Information" not in card


def test_too_few_images_give_no_verdict():
    class Pixels:
        def __call__(self, images, return_tensors):
            return {"pixel_values": torch.tensor(np.array(images[0]) / 255.0).permute(2, 0, 1)[None].float()}

    model, _ = FAMILIES["llava"]()
    image = Image.new("RGB", (28, 28), "red")
    assert image_inputs(Pixels(), image)["pixel_values"].shape == (1, 3, 28, 28)
    with pytest.raises(ValueError, match="3 images are too few"):
        ImageReliability.fitted(model.eval(), Pixels(), [image] * 3)
