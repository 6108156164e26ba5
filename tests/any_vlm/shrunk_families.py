"""Families of transformers from their default configurations, made small by rule.

`build(model_type) -> (model, inputs)`.

What nobody wrote a tiny model of by hand can be tried, too. Rules go by the names of fields; where a family needs sizes
that agree with one another, it has a line in `_agree`. Inputs follow from the arguments of `forward`, and the number
of placeholders from what `get_image_features` returns.
"""

import inspect

import torch
import transformers as T
from tiny_families import IMG, ids
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from poise.evaluation.probing.image_features import ImageFeatures
from poise.evaluation.probing.parts import model_parts

SHRUNK = (
    "aria blip cohere2_vision cosmos3_edge cosmos3_omni deepseek_vl exaone4_5 git glm46v glm_ocr glm4v_moe got_ocr2 "
    "glmga granite_docling hyperclovax_vision_v2 lfm3_vl lighton_ocr llava_next_video minicpm_ocr minicpmv4_6 "
    "minicpmv4_7 molmo2 ovis2 paddleocr_vl qianfan_ocr qwen2_5_omni_thinker qwen3_5_moe qwen3_omni_moe_thinker "
    "qwen3_vl_moe step3p7 t5gemma2 video_llama_3 vipllava"
).split()

_IDS = {"image_token_id": IMG, "image_token_index": IMG, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SIZES = {
    2: "num_experts_per_tok moe_k",
    120: "vocab_size vocab_size_per_layer_input",
    4: "num_attention_heads num_heads n_head encoder_attention_heads decoder_attention_heads num_experts "
    "num_local_experts n_routed_experts moe_num_experts",
    8: "head_dim global_head_dim linear_key_head_dim linear_value_head_dim hidden_size_per_layer_input",
    16: "sliding_window",
    32: "hidden_size d_model embed_dim out_hidden_size output_dim vision_output_dim projection_dim hidden_dim "
    "projector_hidden_size text_hidden_size mm_hidden_size encoder_hidden_size adapter_hidden_size",
    64: "intermediate_size moe_intermediate_size shared_expert_intermediate_size ffn_dim mlp_dim "
    "projector_input_dim projector_output_dim",
}  # fmt: skip
_MOST = {name: size for size, names in _SIZES.items() for name in names.split()}
_DEPTHS = ("num_hidden_layers", "depth", "num_layers", "encoder_layers", "decoder_layers")
_ROTARY = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "partial_rotary_factor": 1.0}


def build(model_type):
    """A tiny random model of a family, and one valid input with one image."""
    config = shrunk(T.CONFIG_MAPPING[model_type]())
    _agree(model_type, config, getattr(config, "text_config", None), getattr(config, "vision_config", None))
    torch.manual_seed(0)
    model = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)](config).eval()
    return model, inputs_of(model)


def shrunk(config, of_images=False):
    """The configuration itself, with every size that has a known name at most a tiny one."""
    for name, value in list(vars(config).items()):
        if isinstance(value, T.PreTrainedConfig):
            shrunk(value, of_images or any(word in name for word in ("vision", "visual", "audio", "vq")))
        elif name in _IDS:
            setattr(config, name, _IDS[name])
        elif isinstance(value, int) and not isinstance(value, bool):
            if name.endswith(("token_id", "token_index")) and value >= 120:
                setattr(config, name, 100 + sum(map(ord, name)) % 17)
            else:
                most = {"num_key_value_heads": 4 if of_images else 2, **dict.fromkeys(_DEPTHS, 2 if of_images else 3)}
                setattr(config, name, min(value, {**_MOST, **most}.get(name, value)))
    depth = getattr(config, "num_hidden_layers", None)
    for name in ("layer_types", "mlp_layer_types"):
        if isinstance(kinds := getattr(config, name, None), list) and isinstance(depth, int):
            kinds = list(dict.fromkeys(kinds))
            setattr(config, name, (kinds + [kinds[-1]] * depth)[:depth])
    for rotary in (getattr(config, "rope_parameters", None), getattr(config, "rope_scaling", None)):
        if isinstance(rotary, dict) and "mrope_section" in rotary:
            rotary["mrope_section"] = [2, 1, 1]
    return config


def _agree(model_type, config, text, vision):
    """Sizes that belong together."""
    if vision is not None and isinstance(side := getattr(vision, "image_size", None), int) and side > 112:
        if model_type not in ("got_ocr2", "cohere2_vision") and isinstance(vision.patch_size, int):
            vision.image_size = 4 * vision.patch_size
    if model_type.startswith("glm") or model_type in ("paddleocr_vl", "qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"):
        text.rope_parameters, text.head_dim = dict(_ROTARY), 8
    if "omni" in model_type and "thinker" in model_type:  # checkpoints have them, the class has no such default
        config.vision_start_token_id, config.vision_end_token_id, config.audio_start_token_id = 97, 96, 95
    if model_type == "aria":
        config.projector_patch_to_query_dict = {16: 4}
    if model_type.startswith("minicpm"):
        config.image_token_id, config.video_token_id = IMG, 98
    if model_type == "molmo2":
        config.image_token_id, config.adapter_config.vision_feature_layer = IMG, [-1, -2]
    if model_type == "vipllava":
        config.vision_feature_layers, vision.image_size = [-1, -2], 56
    if model_type == "llava_next_video":
        vision.image_size, config.image_grid_pinpoints = 28, [[28, 56]]
    if model_type == "step3p7":
        text.sliding_window = 16
    if model_type == "t5gemma2":
        config.encoder.mm_tokens_per_image = 4
        config.encoder.vision_config.image_size, config.encoder.vision_config.patch_size = 56, 14


def _number(*values):
    """The first that is a number, or holds some."""
    values = [value[0] if isinstance(value, list | tuple) and value else value for value in values]
    return next(value for value in values if isinstance(value, int))


def image_inputs_of(model):
    """What a processor would make of one image, by what `forward` takes."""
    config, takes = model.config, inspect.signature(model.forward).parameters
    encoder = getattr(config, "encoder", None)
    vision = getattr(config, "vision_config", None) or getattr(encoder, "vision_config", config)

    def of(name, default):
        return _number(getattr(vision, name, None), getattr(config, name, None), default)

    patch, merge, frames = of("patch_size", 14), of("spatial_merge_size", 2), of("temporal_patch_size", 1)
    side = of("image_size", 4 * patch)
    if "image_grid_thw" in takes:
        count, size = (2 * merge) ** 2, 3 * frames * patch**2
        pixels = torch.randn(count, 3, patch, patch) if "paddleocr" in config.model_type else torch.randn(count, size)
        inputs = {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, 2 * merge, 2 * merge]])}
        return inputs | ({"image_merge_sizes": torch.tensor([merge])} if "image_merge_sizes" in takes else {})
    if "target_sizes" in takes:  # MiniCPM-V: 8 × 8 patches in a row
        return {"pixel_values": torch.randn(1, 3, patch, 64 * patch), "target_sizes": torch.tensor([[8, 8]])}
    if "image_token_pooling" in takes:  # Molmo: four tokens of four patches each
        patches = torch.randn(1, (side // patch) ** 2, 3 * patch**2)
        grid = {"image_grids": torch.tensor([[2, 2, 0, 0]]), "image_num_crops": torch.tensor([1])}
        return {"pixel_values": patches, "image_token_pooling": torch.arange(16).view(4, 4), **grid}
    if config.model_type == "llava_next_video":
        return {"pixel_values": torch.randn(1, 3, 3, 28, 28), "image_sizes": torch.tensor([[28, 56]])}
    inputs = {"pixel_values": torch.randn(1, 3, side, side)}
    if config.model_type == "granite_docling":
        return {"pixel_values": inputs["pixel_values"][None], "pixel_attention_mask": torch.ones(1, 1).bool()}
    return inputs | ({"image_sizes": torch.tensor([[side, side]])} if "image_sizes" in takes else {})


def inputs_of(model):
    return with_words(model, image_inputs_of(model))


@torch.no_grad()
def with_words(model, inputs):
    """Words around as many placeholders as the model fills with an image."""
    takes, count, parts = inspect.signature(model.forward).parameters, 1, model_parts(model)
    if parts.image_owner is not None:
        count = len(ImageFeatures(parts.image_owner.get_image_features(**inputs, return_dict=True)).rows)
    elif "image_embeds_position_mask" in inputs:
        count = int(inputs["image_embeds_position_mask"].sum())
    elif "bbox" in inputs:  # of every word
        count = 0
    words = ids(count)
    types = {name: (words == IMG).long() for name in ("token_type_ids", "mm_token_type_ids") if name in takes}
    return {"input_ids": words, **inputs, **types}
