"""PoiseConfig: round trips, what it derives, and mistakes in a name or a combination."""

import pytest
from tiny_models import LANGUAGES, tag_encoder_config, text_config, tiny_config, vision_config
from transformers import AutoConfig, BertConfig, LlamaConfig, SiglipVisionConfig

from poise.modeling import PoiseConfig


@pytest.mark.parametrize("language", LANGUAGES)
def test_round_trip_through_a_folder(language, tmp_path):
    config = tiny_config(
        language, router_type="channel", channel_rank=7, vision_feature_layer=[1, 2], soft_prompt_length=3,
        backbones={"vision": "a/b", "text": "c/d", "tag_encoder": None},
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    for loaded in (PoiseConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is PoiseConfig
        ours, theirs = config.to_dict(), loaded.to_dict()
        for name in ours.keys() - {"transformers_version", "_name_or_path"}:
            assert ours[name] == theirs[name], name
        assert type(loaded.text_config) is type(config.text_config)


def test_sub_configurations_may_be_dictionaries():
    config = PoiseConfig(
        vision_config=vision_config().to_dict(), text_config=text_config("llama").to_dict(),
        tag_encoder_config=tag_encoder_config().to_dict(),
    )  # fmt: skip
    kinds = (config.vision_config, config.text_config, config.tag_encoder_config)
    assert [type(kind) for kind in kinds] == [SiglipVisionConfig, LlamaConfig, BertConfig]


def test_defaults_alone_make_a_configuration():
    config = PoiseConfig()
    assert (config.num_image_tokens, config.num_prompt_tokens) == (196, 8)
    assert config.router_type == "none" and config.tag_encoder_config.model_type == "bert"


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_the_language_model_decides(language):
    config = tiny_config(language)
    assert config.is_encoder_decoder == (language == "t5")
    assert config.tie_word_embeddings == config.text_config.tie_word_embeddings
    assert config.get_text_config() is config.text_config
    layers = config.get_text_config(decoder=True).num_hidden_layers
    assert layers == (3 if language == "t5" else 2)  # a cache needs as many as the decoder has
    assert config.text_config.num_hidden_layers == 2


@pytest.mark.parametrize(
    "vision,fields,image_tokens",
    [
        ("siglip", {}, 9),
        ("clip", {}, 9),
        ("clip", {"vision_feature_select": "full"}, 10),
        ("siglip", {"vision_image_size": 40}, 25),
        ("siglip", {"vision_feature_layer": [0, 1, 2]}, 9),
        ("siglip", {"vision_prefix_tokens": 2, "vision_feature_select": "full"}, 11),
    ],
)
def test_number_of_image_tokens(vision, fields, image_tokens):
    assert tiny_config(vision=vision, **fields).num_image_tokens == image_tokens


@pytest.mark.parametrize("prompt,length,tokens", [("none", 5, 0), ("static", 5, 5), ("dynamic", 5, 5)])
def test_number_of_prompt_tokens(prompt, length, tokens):
    assert tiny_config(soft_prompt_type=prompt, soft_prompt_length=length).num_prompt_tokens == tokens


def test_a_tower_nobody_told_about_its_class_tokens():
    config = tiny_config()
    config.vision_config.model_type = "new_tower"
    with pytest.raises(ValueError, match="model_type='new_tower'.*set vision_prefix_tokens"):
        _ = config.num_prefix_tokens
    config.vision_prefix_tokens = 4
    assert config.num_prefix_tokens == 4


MISTAKES = [
    ({"router_type": "gait"}, r"router_type='gait' is not known: choose one of 'none', .* Did you mean 'gate'\?"),
    ({"router_type": "xyz"}, r"router_type='xyz' is not known: choose one of .*'reliability'\.$"),
    ({"router_type": "gate", "router_scope": "prompt"}, r"router_scope='prompt' is no longer there.*train .* again"),
    ({"projector_type": "mpl"}, r"projector_type='mpl'.* Did you mean 'mlp'\?"),
    ({"soft_prompt_type": "dynamical"}, r"soft_prompt_type='dynamical'.* Did you mean 'dynamic'\?"),
    ({"soft_prompt_pooling": "querys"}, r"soft_prompt_pooling='querys'.* Did you mean 'queries'\?"),
    ({"tag_score_encoding": "bias"}, r"tag_score_encoding='bias'.*'attention_bias'"),
    ({"vision_feature_select": "cls"}, r"vision_feature_select='cls'.*'patch', 'full'"),
    ({"soft_prompt_length": 0}, r"soft_prompt_length=0 must be at least 1.*soft_prompt_type='none'"),
    ({"soft_prompt_pooling": "mean"}, r"soft_prompt_length=2 does not fit .*'mean'.*set soft_prompt_length=1"),
    ({"router_type": "gate", "soft_prompt_type": "none"}, r"router_type='gate'.*soft_prompt_type='none' leaves one"),
    ({"router_type": "channel", "soft_prompt_type": "none"}, r"router_type='channel'.*choose a soft prompt"),
    ({"channel_fraction": 0.0}, r"channel_fraction=0.0 must lie in \(0, 1\]"),
    ({"channel_rank": 0}, r"channel_rank=0 must be at least 1"),
    ({"channel_max_tokens": 0}, r"channel_max_tokens=0 must be at least 1"),
    ({"stream_dropout": 1.0}, r"stream_dropout=1.0 must lie in \[0, 1\)"),
    ({"reliability_quantile": 0.2}, r"reliability_quantile=0.2 must lie in \(0.5, 1\)"),
    ({"projector_type": "aggregator", "vision_feature_layer": [-1]}, r"vision_feature_layer=\[-1\] selects 1: give"),
    ({"vision_feature_layer": [1, -4]}, r"vision_feature_layer=\[1, -4\] names hidden state -4.*use -3 to 2"),
    ({"vision_feature_layer": []}, r"vision_feature_layer=\[\] selects nothing"),
]  # fmt: skip


@pytest.mark.parametrize(
    "fields,message", MISTAKES, ids=lambda value: "-".join(value) if isinstance(value, dict) else ""
)
def test_a_mistake_is_one_clear_line(fields, message):
    with pytest.raises(ValueError, match=message) as mistake:
        tiny_config(**fields)
    assert "\n" not in str(mistake.value)


@pytest.mark.parametrize("fields", [{"soft_prompt_length": "8"}, {"router_type": 3}, {"stream_dropout": "a"}])
def test_a_value_of_another_type_is_refused(fields):
    with pytest.raises(Exception, match=next(iter(fields))) as mistake:
        tiny_config(**fields)
    assert "Validation" in type(mistake.value).__name__ or isinstance(mistake.value, (TypeError, ValueError))


def test_fields_that_look_like_contradictions_but_are_none():
    old = tiny_config(router_type="gate", router_scope="image")  # as configurations once said it
    assert not hasattr(old, "router_scope")
    tiny_config(router_type="none", router_scope="prompt")
    tiny_config(router_type="reliability", soft_prompt_type="none")
    tiny_config(soft_prompt_type="dynamic", soft_prompt_pooling="mean", soft_prompt_length=1)
    tiny_config(soft_prompt_type="static", soft_prompt_pooling="mean", soft_prompt_length=4)


def test_a_configuration_of_another_architecture_is_one_clear_line(tmp_path):
    text_config("llama").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model_type='llama', not a Poise model: .*from_backbones") as mistake:
        PoiseConfig.from_pretrained(tmp_path)
    assert str(tmp_path) in str(mistake.value) and "\n" not in str(mistake.value)
