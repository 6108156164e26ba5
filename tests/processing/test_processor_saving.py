import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from transformers import AutoProcessor

from poise.processing.processing_poise import PoiseProcessor

from .conftest import make_processor, piece_tokenizer, word_tokenizer

SETTINGS = {
    "num_prompt_tokens": 3,
    "tag_score_encoding": "text",
    "tag_words": False,
    "max_tags": 5,
    "max_pixels": 12345,
}
TAGS = [("dog", 0.97), ("ball", 0.6)]


def inputs_of(processor, photo):
    return processor(images=photo, text=["<image> what ?", "dog"], tags=[TAGS], return_tensors="pt", padding=True)


@pytest.mark.parametrize("with_tags", [True, False])
def test_everything_survives_saving(tmp_path, photo, with_tags):
    tokenizers = {
        "tokenizer": word_tokenizer(padding_side="left"),
        "tag_tokenizer": piece_tokenizer(max_length=40) if with_tags else None,
    }
    processor = make_processor(**SETTINGS, **tokenizers)
    processor.save_pretrained(tmp_path)
    again = PoiseProcessor.from_pretrained(tmp_path)
    for name, value in SETTINGS.items():
        assert getattr(again, name) == value
    assert (again.num_image_tokens, again.image_token, again.image_token_id) == (4, "<image>", processor.image_token_id)
    assert again.chat_template == processor.chat_template == again.tokenizer.chat_template
    assert again.tokenizer.padding_side == "left" and again.tokenizer.image_token == "<image>"
    assert (again.tag_tokenizer is not None) == with_tags
    if with_tags:
        assert again.tag_tokenizer.model_max_length == 40
    before, after = inputs_of(processor, photo), inputs_of(again, photo)
    assert set(before) == set(after)
    for name in before:
        torch.testing.assert_close(before[name], after[name])
    # Saving the reloaded one changes no file.
    again.save_pretrained(tmp_path / "twice")
    for name in ("processor_config.json", "chat_template.jinja"):
        assert (tmp_path / name).read_text() == (tmp_path / "twice" / name).read_text()


def test_a_lost_tag_tokenizer_is_not_silently_replaced(tmp_path, processor):
    processor.save_pretrained(tmp_path)
    for file in (tmp_path / "tag_tokenizer").iterdir():
        file.unlink()
    with pytest.raises((OSError, ValueError), match="tag_tokenizer|tokenizer"):
        PoiseProcessor.from_pretrained(tmp_path)


def test_saving_without_a_tag_tokenizer_over_one_with(tmp_path, processor):
    processor.save_pretrained(tmp_path)
    make_processor(tag_tokenizer=None).save_pretrained(tmp_path)
    assert PoiseProcessor.from_pretrained(tmp_path).tag_tokenizer is None


def test_arguments_win_over_the_file(tmp_path, processor):
    processor.save_pretrained(tmp_path)
    assert PoiseProcessor.from_pretrained(tmp_path, max_tags=7).max_tags == 7


def test_printing_and_copying(processor):
    assert json.loads(processor.to_json_string())["tag_tokenizer_folder"] == "tag_tokenizer"
    assert "PoiseProcessor" in repr(processor)
    assert processor.tag_tokenizer is not None  # neither took it away


def test_with_poise_installed_the_auto_class_finds_ours(tmp_path, processor):
    processor.save_pretrained(tmp_path)
    assert type(AutoProcessor.from_pretrained(tmp_path)) is PoiseProcessor


BARE_MACHINE = """
    import importlib.abc, sys

    class NoPoise(importlib.abc.MetaPathFinder):
        def find_spec(self, fullname, path, target=None):
            if fullname.partition(".")[0] == "poise":
                raise ModuleNotFoundError("No module named 'poise'", name="poise")

    sys.meta_path.insert(0, NoPoise())
    import torch
    from PIL import Image
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
    photo = Image.new("RGB", (80, 60), "red")
    photo.paste("blue", (40, 0, 80, 60))
    tags = [("dog", 0.97), ("ball", 0.6)]
    batch = processor(images=photo, text=["<image> what ?", "dog"], tags=[tags], return_tensors="pt", padding=True)
    chat = [{"role": "user", "content": [
        {"type": "image", "image": photo, "tags": tags}, {"type": "text", "text": "what ?"}]}]
    chat = processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
    torch.save({"plain": dict(batch), "chat": dict(chat)}, sys.argv[2])
    assert not any(name.partition(".")[0] == "poise" for name in sys.modules)
    processor.save_pretrained(sys.argv[3])
    AutoProcessor.from_pretrained(sys.argv[3], trust_remote_code=True)
"""


@pytest.mark.slow
def test_a_process_without_poise_loads_it_with_its_code(tmp_path, processor, photo):
    folder, result, second = tmp_path / "published", tmp_path / "inputs.pt", tmp_path / "second"
    processor.save_pretrained(folder)
    script = tmp_path / "bare.py"
    script.write_text(textwrap.dedent(BARE_MACHINE))
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache")}
    run = subprocess.run(
        [sys.executable, str(script), str(folder), str(result), str(second)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    there = torch.load(result)
    for name, value in inputs_of(processor, photo).items():
        torch.testing.assert_close(value, there["plain"][name])
    chat = [
        {
            "role": "user",
            "content": [{"type": "image", "image": photo, "tags": TAGS}, {"type": "text", "text": "what ?"}],
        }
    ]
    here = processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    for name, value in here.items():
        torch.testing.assert_close(value, there["chat"][name])


def test_a_reloaded_processor_is_equal_to_the_original(tmp_path):
    """Saved and loaded twice: neither settings nor `auto_map` change on the way."""
    processor = make_processor(tag_length=7, question_length=9)
    processor.save_pretrained(tmp_path / "first")
    loaded = PoiseProcessor.from_pretrained(tmp_path / "first")
    loaded.save_pretrained(tmp_path / "second")
    first, second = (
        json.loads((tmp_path / name / "processor_config.json").read_text()) for name in ("first", "second")
    )
    assert first == second and first["auto_map"] == {"AutoProcessor": "processing_poise.PoiseProcessor"}
    assert loaded.to_dict() == processor.to_dict()
