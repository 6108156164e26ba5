"""The shipped tiny backbones load with the Auto classes, are small, and know what they were pretrained for."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
)

from poise.processing.scenes.layout import COLORS, PRIOR_COLOR_OF_SHAPE, SHAPES
from poise.processing.scenes.scenes import Scenes
from poise.training.tiny_backbones.build import STEPS, check_backbone, main, tiny_backbone_path
from poise.training.tiny_backbones.corpus import prompt_words
from poise.training.tiny_backbones.language_models import answers

LANGUAGE_MODELS = {"causal_lm": AutoModelForCausalLM, "seq2seq_lm": AutoModelForSeq2SeqLM}


@pytest.fixture(scope="module", params=list(LANGUAGE_MODELS))
def language_model(request):
    folder = tiny_backbone_path(request.param)
    model = LANGUAGE_MODELS[request.param].from_pretrained(folder).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def test_together_they_are_small_and_each_says_what_it_is():
    sizes = {name: sum(f.stat().st_size for f in Path(tiny_backbone_path(name)).iterdir()) for name in STEPS}
    weights = sum((Path(tiny_backbone_path(name)) / "model.safetensors").stat().st_size for name in STEPS)
    assert weights <= 6_000_000 and sum(sizes.values()) <= 6_200_000, sizes
    for name in STEPS:
        readme = (Path(tiny_backbone_path(name)) / "README.md").read_text(encoding="utf-8")
        assert f"poise backbones --check --only {name}" in readme and "license: apache-2.0" in readme


def test_vision_tower_loads_and_reads_any_image():
    folder = tiny_backbone_path("vision")
    tower, processor = AutoModel.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    assert type(tower).__name__ == "SiglipVisionModel" and tower.dtype == torch.float32
    photo = Image.effect_noise((320, 200), 50)
    for image in (Scenes("test", size=1)[0]["image"], photo.convert("RGB"), photo):
        pixels = processor(image, return_tensors="pt")["pixel_values"]
        assert pixels.shape == (1, 3, 48, 48) and pixels.min() >= -1 and pixels.max() <= 1
        assert tower(pixel_values=pixels).last_hidden_state.shape == (1, 36, 96)


def test_image_processor_gives_the_pixels_that_the_tower_was_trained_on():
    """A scene has the tower's size, so nothing may be resized or cropped."""
    image = Scenes("test", size=1)[0]["image"]
    pixels = AutoImageProcessor.from_pretrained(tiny_backbone_path("vision"))(image, return_tensors="pt")
    expected = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).astype(np.float32)) / 127.5 - 1
    assert torch.allclose(pixels["pixel_values"][0], expected, atol=1e-5)


def test_vision_tower_tells_shapes_and_colours_apart():
    figures = check_backbone("vision")
    assert figures["shape_probe"] > 0.95 and figures["color_probe"] > 0.97 and figures["empty_probe"] > 0.97


def test_tag_encoder():
    folder = tiny_backbone_path("tag_encoder")
    encoder, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(["red square 0.97, blue circle 0.10", "hairdryer 0.5"], padding=True, return_tensors="pt")
    assert tokenizer.unk_token_id not in batch["input_ids"]
    assert encoder(**batch).last_hidden_state.shape[-1] == encoder.config.hidden_size
    figures = check_backbone("tag_encoder")
    assert figures["color_probe"] > 0.9 and figures["shape_probe"] > 0.9


def test_language_models_hold_the_prior(language_model):
    """Without an image a question about a shape is answered with the prior's colour, and the other way round."""
    model, tokenizer = language_model
    questions = [f"what color is the {shape} ?" for shape in SHAPES] + [
        f"what shape is the {c} thing ?" for c in COLORS
    ]
    shape_of = {color: shape for shape, color in PRIOR_COLOR_OF_SHAPE.items()}
    expected = [PRIOR_COLOR_OF_SHAPE[shape] for shape in SHAPES] + [shape_of[color] for color in COLORS]
    assert answers(model, tokenizer, [prompt_words(question) for question in questions]) == expected
    tight = [prompt_words(question).replace(" ?", "?").replace(" :", ":") for question in questions]
    assert answers(model, tokenizer, tight) == expected


def test_language_models_read_a_context_against_the_prior(language_model):
    model, tokenizer = language_model
    name = "seq2seq_lm" if model.config.is_encoder_decoder else "causal_lm"
    figures = check_backbone(name)
    assert figures["prior"] > 0.95
    # Chance is 1/8. Reading is what these small models do worst; their README says how well.
    assert figures["caption_read"] > 0.5 and figures["tags_read"] > 0.5


def test_language_models_know_the_form_of_every_task(language_model):
    model, tokenizer = language_model
    box, caption, count, place = answers(
        model,
        tokenizer,
        [prompt_words(q) for q in ("the red square", "describe the picture", "how many stars are there ?",
                                   "where is the red square ?")],
        max_new_tokens=24,
    )  # fmt: skip
    assert box.startswith("[") and box.count(",") >= 2
    if not model.config.is_encoder_decoder:
        numbers = json.loads(box)
        assert len(numbers) == 4 and all(0 <= number <= 999 for number in numbers)
    assert any(shape in caption for shape in SHAPES)
    assert count in "01234" and place.split()[0] in ("top", "bottom", "left", "right", "middle")


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_text_tokenizers(name):
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone_path(name))
    assert tokenizer.image_token == "<image>" and tokenizer.image_token_id == tokenizer.convert_tokens_to_ids("<image>")
    for text in (
        "what color is the square ?",
        "[12,345,0,999]",
        "a dog's ball  on the café table",
        "日本語 🐶 \t tab\nnewline",
        "hairdryer: 0.97, it is (really) red!",
    ):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text and tokenizer.unk_token_id not in ids
    assert tokenizer("Red SQUARE")["input_ids"] == tokenizer("red square")["input_ids"]
    # An answer is the same token alone, in a sentence and behind placeholders.
    red = tokenizer("red", add_special_tokens=False)["input_ids"]
    assert len(red) == 1 and tokenizer("<image> red", add_special_tokens=False)["input_ids"][1:] == red
    digits = tokenizer("[123,45]", add_special_tokens=False)["input_ids"]
    assert len(digits) == 8
    assert (tokenizer("red")["input_ids"][-1] == tokenizer.eos_token_id) == (name == "seq2seq_lm")


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_chat_template(name):
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone_path(name))
    question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what color is the square ?"}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "red"}]}
    prompt = tokenizer.apply_chat_template([question], tokenize=False, add_generation_prompt=True)
    assert prompt == "<image> question : what color is the square ? answer :"
    assert tokenizer.apply_chat_template([question, answer], tokenize=False) == prompt + " red</s>"
    plain = [{"role": "user", "content": "why ?"}, {"role": "assistant", "content": "so"}]
    assert tokenizer.apply_chat_template(plain, tokenize=False) == " question : why ? answer : so</s>"


def test_bad_arguments(tmp_path, capsys):
    with pytest.raises(ValueError, match="name='visoin'.*vision"):
        tiny_backbone_path("visoin")
    (tmp_path / "file").write_text("")
    for argv, message in (([], "--out is missing"), (["--out", str(tmp_path / "file")], "is a file"),
                          (["--out", str(tmp_path / "new"), "--jobs", "0"], "--jobs=0")):  # fmt: skip
        with pytest.raises(SystemExit):
            main(argv)
        assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_rebuilt_one_behaves_alike(tmp_path, capsys):
    """A few of the steps already give colours and the reading of a caption; the layout on disk is the shipped one's.

    What a decoder-only model learns last is the prior: a fifth of its text needs it.
    """
    assert main(["--out", str(tmp_path), "--only", "vision", "tag_encoder", "--steps", "250", "--jobs", "1"]) == 0
    assert main(["--out", str(tmp_path), "--only", "causal_lm", "seq2seq_lm", "--steps", "400", "--jobs", "2"]) == 0
    built = {line["backbone"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert built["vision"]["color_probe"] > 0.8 and built["vision"]["empty_probe"] > 0.9
    assert built["tag_encoder"]["color_probe"] > 0.8
    # Chance is 1/8, and an answer from the prior is wrong there.
    assert built["causal_lm"]["caption_read"] > 0.2 and built["seq2seq_lm"]["caption_read"] > 0.2
    assert built["seq2seq_lm"]["prior"] > 0.8
    for name in STEPS:
        shipped, rebuilt = Path(tiny_backbone_path(name)), tmp_path / name
        assert {f.name for f in shipped.iterdir()} == {f.name for f in rebuilt.iterdir()}
        configs = [json.loads((folder / "config.json").read_text()) for folder in (shipped, rebuilt)]
        assert configs[0] == configs[1]
        for file in ("preprocessor_config.json", "chat_template.jinja"):
            if (shipped / file).exists():
                assert (shipped / file).read_text() == (rebuilt / file).read_text()


@pytest.mark.slow
def test_building_is_seeded(tmp_path, capsys):
    for folder in ("a", "b"):
        main(["--out", str(tmp_path / folder), "--only", "tag_encoder", "causal_lm", "--steps", "5", "--jobs", "2"])
    capsys.readouterr()
    for name in ("tag_encoder", "causal_lm"):
        a, b = ((tmp_path / folder / name / "model.safetensors").read_bytes() for folder in ("a", "b"))
        assert a == b
