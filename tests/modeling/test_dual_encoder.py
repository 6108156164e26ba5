"""The dual encoder: frozen encoders, paths, invariances, saving, the pipeline of transformers."""

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    BertConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    Dinov2Config,
    RobertaConfig,
    ViTConfig,
    pipeline,
)

from poise.modeling import PoiseDualEncoder, PoiseDualEncoderConfig
from poise.processing import Scenes

pytestmark = pytest.mark.numerics


@pytest.fixture(scope="module")
def inputs(tiny_pair_processor):
    records = Scenes("test", size=3, tasks=["caption"]).__getitems__(range(3))
    texts = [record["captions"][0] for record in records]
    pixels = tiny_pair_processor.image_processor([r["image"] for r in records], return_tensors="pt")["pixel_values"]
    tokens = tiny_pair_processor.tokenizer(texts, padding=True, return_tensors="pt")
    return {"pixel_values": pixels, "input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}


def test_only_the_head_learns(tiny_dual_encoder, inputs):
    model = tiny_dual_encoder().train()
    assert model.training and model.head.training and not model.eval().head.training and model.train().training
    assert not model.vision_model.training and not model.text_model.training
    model(**inputs, return_loss=True).loss.backward()
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning and all(name.startswith("head.") for name in learning)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.head.parameters() if p.requires_grad)
    assert not model.head.logit_bias.requires_grad  # InfoNCE does not see it
    assert tiny_dual_encoder(loss_type="sigmoid").head.logit_bias.requires_grad


@pytest.mark.parametrize("loss_type", ["infonce", "sigmoid"])
def test_saved_and_loaded_it_says_the_same(tiny_dual_encoder, tiny_pair_processor, inputs, loss_type, tmp_path):
    model = tiny_dual_encoder(loss_type=loss_type, text_feature_layer=1, vision_feature_layer=-2)
    model.save_pretrained(tmp_path)
    tiny_pair_processor.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(**inputs, return_loss=True)
    for auto in (AutoModel, AutoModelForZeroShotImageClassification):
        loaded = auto.from_pretrained(tmp_path)
        assert type(loaded) is PoiseDualEncoder
        # Mapped weights are copied to where every kernel takes them alike, see tests/modeling/test_memory_alignment.py.
        assert not [name for name, weight in loaded.named_parameters() if weight.data_ptr() % 64]
        with torch.no_grad():
            found = loaded(**inputs, return_loss=True)
        assert torch.equal(found.logits_per_image, expected.logits_per_image) and torch.equal(found.loss, expected.loss)
        assert torch.equal(found.logits_per_text, found.logits_per_image.T)
    assert type(AutoProcessor.from_pretrained(tmp_path)) is type(tiny_pair_processor)
    answer = pipeline("zero-shot-image-classification", model=str(tmp_path))(
        Scenes("test", size=1)[0]["image"], candidate_labels=["red square", "blue star"], hypothesis_template="a {}"
    )
    assert {item["label"] for item in answer} == {"red square", "blue star"}
    assert sum(item["score"] for item in answer) == pytest.approx(1.0)


def test_padding_and_company_change_nothing(tiny_dual_encoder, inputs):
    model = tiny_dual_encoder()
    with torch.no_grad():
        together = model(**inputs)
        for row in range(3):
            length = int(inputs["attention_mask"][row].sum())
            alone = model(
                pixel_values=inputs["pixel_values"][row : row + 1],
                input_ids=inputs["input_ids"][row : row + 1, :length],
            )
            torch.testing.assert_close(alone.text_embeds[0], together.text_embeds[row], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(alone.image_embeds[0], together.image_embeds[row], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.image_embeds.norm(dim=-1), torch.ones(3))


SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
PATCHES = {"image_size": 16, "patch_size": 8}


@pytest.mark.parametrize(
    ("vision", "text"),
    [
        (ViTConfig(**SIZES, **PATCHES), BertConfig(**SIZES, vocab_size=20)),
        (Dinov2Config(**SIZES, **PATCHES), RobertaConfig(**SIZES, vocab_size=20)),
        (CLIPVisionConfig(**SIZES, **PATCHES), CLIPTextConfig(**SIZES, vocab_size=20, eos_token_id=19)),
    ],
    ids=lambda config: config.model_type,
)
def test_a_tower_with_a_class_token_has_both_paths(vision, text):
    pixels, ids = torch.randn(2, 3, 16, 16), torch.randint(20, (2, 5))
    embeds = {}
    for paths in (None, "tokens", "cls"):
        for text_paths in ("tokens", "cls"):
            torch.manual_seed(0)
            model = PoiseDualEncoder(
                PoiseDualEncoderConfig(
                    vision_config=vision, text_config=text, embed_dim=8, vision_paths=paths, text_paths=text_paths
                )
            ).eval()
            output = model(pixel_values=pixels, input_ids=ids)
            assert output.image_embeds.shape == output.text_embeds.shape == (2, 8)
            features = model.vision_features(pixels)
            assert set(features) == {
                None: {"vision_tokens", "vision_cls"}, "tokens": {"vision_tokens"}, "cls": {"vision_cls"}
            }[paths]  # fmt: skip
            embeds[paths, text_paths] = model.config.vision_paths
    assert embeds[None, "tokens"] == "tokens+cls"


@pytest.mark.parametrize("text", ["causal_lm", "seq2seq_lm"])
def test_language_models_can_be_text_encoders(tiny_dual_encoder, text, tmp_path):
    model = tiny_dual_encoder(text=text)
    ids = torch.tensor([[5, 6, 7], [8, 9, 1]])
    with torch.no_grad():
        expected = model.get_text_features(ids).pooler_output
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(AutoModel.from_pretrained(tmp_path).get_text_features(ids).pooler_output, expected)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"loss_type": "infonec"}, "infonce"),
        ({"vision_paths": "cls"}, "has no class token"),
        ({"text_paths": "mean"}, "text_paths='mean'"),
        ({"text_feature_layer": 3}, "2 layers"),
        ({"embed_dim": 0}, "embed_dim=0"),
        ({"projector_dropout": 1.0}, "projector_dropout=1.0"),
        ({"embed_dims": 8}, "embed_dim"),
    ],
)
def test_mistakes_in_the_configuration_name_field_value_and_remedy(tiny_dual_encoder, fields, words):
    with pytest.raises(ValueError) as caught:
        tiny_dual_encoder(**fields)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_half_an_input_is_refused(tiny_dual_encoder, inputs):
    model = tiny_dual_encoder()
    with pytest.raises(ValueError, match="input_ids is missing"):
        model(pixel_values=inputs["pixel_values"])
    with pytest.raises(ValueError, match="3 images and 2 texts"):
        model(pixel_values=inputs["pixel_values"], input_ids=inputs["input_ids"][:2], return_loss=True)
