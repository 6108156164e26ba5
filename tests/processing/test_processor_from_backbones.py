from types import SimpleNamespace

import pytest
from transformers import SiglipImageProcessor

from poise.processing.chat_templates import CHAT_TEMPLATES
from poise.processing.processing_poise import PoiseProcessor

from .conftest import piece_tokenizer, word_tokenizer


@pytest.fixture
def folders(tmp_path):
    """Backbones as they lie on the Hub, as far as a processor reads them; the language model knows no <image>."""
    SiglipImageProcessor(size={"height": 48, "width": 48}).save_pretrained(tmp_path / "vision")
    tokenizer = word_tokenizer(image_token=None, extra_special_tokens=["<extra_1>"])
    tokenizer.save_pretrained(tmp_path / "text")
    piece_tokenizer(max_length=int(1e30)).save_pretrained(tmp_path / "tags")
    return {"vision": tmp_path / "vision", "text": tmp_path / "text", "tag_encoder": tmp_path / "tags"}


def configuration(**fields):
    """What the processor asks of a PoiseConfig."""
    settings = {
        "num_image_tokens": 36,
        "num_prompt_tokens": 8,
        "tag_score_encoding": "embedding",
        "soft_prompt_type": "dynamic",
        "is_encoder_decoder": False,
        "patch_grid": (6, 6),
        "adapter_tasks": None,
        "vision_config": SimpleNamespace(patch_size=8),
        "asks_the_question": False,
        "tag_encoder_config": SimpleNamespace(max_position_embeddings=32),
    }
    return SimpleNamespace(**{**settings, **fields})


def test_it_matches_the_configuration(folders):
    processor = PoiseProcessor.from_backbones(**folders, config=configuration())
    assert (processor.num_image_tokens, processor.num_prompt_tokens) == (36, 8)
    assert processor.tag_score_encoding == "embedding"
    assert processor.tokenizer.padding_side == "left"
    assert processor.tag_tokenizer.model_max_length == 32
    assert processor.chat_template == CHAT_TEMPLATES["plain"]
    # The placeholder is the last word of the vocabulary; the special tokens that were there stay special.
    before = word_tokenizer(image_token=None, extra_special_tokens=["<extra_1>"])
    assert processor.image_token_id == len(before) == len(processor.tokenizer) - 1
    assert "<extra_1>" in processor.tokenizer.extra_special_tokens
    assert processor.tokenizer.image_token == "<image>"


def test_fields_win_over_the_configuration(folders):
    processor = PoiseProcessor.from_backbones(
        **folders, config=configuration(), num_image_tokens=9, tag_words=False, chat_template="question_answer"
    )
    assert processor.num_image_tokens == 9 and not processor.tag_words
    assert processor.chat_template == CHAT_TEMPLATES["question_answer"]


def test_without_a_configuration(folders):
    processor = PoiseProcessor.from_backbones(**folders, num_image_tokens=36)
    assert processor.num_prompt_tokens == 0 and processor.tokenizer.padding_side == "right"
    with pytest.raises(ValueError, match="num_image_tokens is not known"):
        PoiseProcessor.from_backbones(**folders)


def test_an_encoder_decoder_and_a_model_without_a_dynamic_prompt(folders):
    config = configuration(is_encoder_decoder=True, soft_prompt_type="static")
    processor = PoiseProcessor.from_backbones(**folders, config=config)
    assert processor.tokenizer.padding_side == "right" and processor.tag_tokenizer is None


def test_a_placeholder_that_is_known_keeps_its_id(folders):
    word_tokenizer().save_pretrained(folders["text"])
    processor = PoiseProcessor.from_backbones(**folders, config=configuration())
    assert len(processor.tokenizer) == len(word_tokenizer())
    assert processor.image_token_id == word_tokenizer().convert_tokens_to_ids("<image>")


def test_a_missing_padding_token_is_replaced_and_said(folders, monkeypatch):
    said = []
    monkeypatch.setattr("poise.processing.backbone_processors.logger.warning", said.append)
    word_tokenizer(pad_token=None).save_pretrained(folders["text"])
    processor = PoiseProcessor.from_backbones(**folders, config=configuration())
    assert processor.tokenizer.pad_token == "</s>" and "no padding token" in said[0]
    word_tokenizer(pad_token=None, eos_token=None).save_pretrained(folders["text"])
    with pytest.raises(ValueError, match="neither a padding nor an end-of-text token"):
        PoiseProcessor.from_backbones(**folders, config=configuration())


def test_images_of_another_size_are_noticed(folders):
    SiglipImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folders["vision"])
    with pytest.raises(ValueError, match="makes 64×64 images, but the configuration expects 48×48"):
        PoiseProcessor.from_backbones(**folders, config=configuration())


def test_what_was_chosen_survives_saving(folders, tmp_path):
    word_tokenizer(pad_token=None, image_token=None).save_pretrained(folders["text"])
    processor = PoiseProcessor.from_backbones(**folders, config=configuration())
    processor.save_pretrained(tmp_path / "saved")
    again = PoiseProcessor.from_pretrained(tmp_path / "saved")
    assert again.tokenizer.padding_side == "left" and again.tokenizer.pad_token == "</s>"
    assert again.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert again.tag_tokenizer.model_max_length == 32
    before, after = processor.to_dict(), again.to_dict()
    assert {**after, "auto_map": None} == {**before, "auto_map": None}
