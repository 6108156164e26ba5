"""Eight tiny random VLMs of families that `tiny_families` does not have, in the same form."""

import torch
import transformers as T
from tiny_families import CLIPV, IMG, RP, SIGV, TXT, ids, t

MORE = {}


def family(build):
    MORE[build.__name__] = build
    return build


@family
def aya_vision():
    config = T.AyaVisionConfig(
        text_config=t("cohere2"), vision_config={**SIGV, "image_size": 56}, image_token_id=IMG, vision_feature_layer=-1,
        downsample_factor=2, vision_feature_select_strategy="full",
    )  # fmt: skip
    inputs = {"input_ids": ids(4), "pixel_values": torch.randn(1, 3, 56, 56)}
    return T.AyaVisionForConditionalGeneration(config), inputs


@family
def lfm2_vl():
    """Convolutions between its attention layers; patches flattened, their rows and columns in `spatial_shapes`."""
    text = {k: v for k, v in TXT.items() if k != "head_dim"}
    text |= {"model_type": "lfm2", "layer_types": ["conv", "full_attention", "conv"], "block_ff_dim": 64}
    vision = {k: v for k, v in SIGV.items() if k not in ("image_size", "model_type")}
    vision |= {"model_type": "siglip2_vision_model", "patch_size": 7, "num_patches": 16}
    config = T.Lfm2VlConfig(
        text_config={**text, "block_multiple_of": 8}, vision_config=vision, image_token_id=IMG, downsample_factor=2,
        projector_hidden_size=32,
    )  # fmt: skip
    inputs = {"input_ids": ids(4), "pixel_values": torch.randn(1, 16, 147), "spatial_shapes": torch.tensor([[4, 4]])}
    inputs["pixel_attention_mask"] = torch.ones(1, 16, dtype=torch.long)
    return T.Lfm2VlForConditionalGeneration(config), inputs


@family
def llama4():
    text = {**TXT, "model_type": "llama4_text", "num_local_experts": 2, "interleave_moe_layer_step": 1}
    text |= {"intermediate_size_mlp": 64, "attention_chunk_size": 64, "num_experts_per_tok": 1}
    vision = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision |= {"image_size": 28, "patch_size": 7, "pixel_shuffle_ratio": 0.5}
    vision |= {"vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32}
    vision["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
    config = T.Llama4Config(
        text_config=text, vision_config=vision, image_token_index=IMG, boi_token_index=97, eoi_token_index=96
    )
    return T.Llama4ForConditionalGeneration(config), {
        "input_ids": ids(4), "pixel_values": torch.randn(1, 3, 28, 28)
    }  # fmt: skip


@family
def fuyu():
    """Its vision tower is one linear layer."""
    text = {k: v for k, v in TXT.items() if k not in ("head_dim", "num_key_value_heads")}
    config = T.FuyuConfig(
        text_config={**text, "model_type": "persimmon", "partial_rotary_factor": 0.5}, image_token_id=IMG,
        vocab_size=120, hidden_size=32, patch_size=14, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return T.FuyuForCausalLM(config), {"input_ids": ids(4), "image_patches": torch.randn(1, 4, 588)}


@family
def chameleon():
    """Its images become words of a vocabulary."""
    names = {"IMGIMG" + "".join(chr(65 + int(digit)) for digit in str(n)) + "Z": 120 + n for n in range(16)}
    vq = {"embed_dim": 8, "num_embeddings": 16, "latent_channels": 8, "base_channels": 32, "resolution": 28}
    text = {k: v for k, v in TXT.items() if k != "head_dim"}
    config = T.ChameleonConfig(
        **{**text, "vocab_size": 200}, vq_config={**vq, "channel_multiplier": [1, 1], "num_res_blocks": 1},
        vocabulary_map={**names, "<image>": IMG},
    )  # fmt: skip
    inputs = {"input_ids": ids(196), "pixel_values": torch.randn(1, 3, 28, 28)}
    return T.ChameleonForConditionalGeneration(config), inputs


@family
def gemma4():
    """Words enter a second time in every layer; patches come with their places."""
    text = {**TXT, "model_type": "gemma4_text", "vocab_size_per_layer_input": 120, "hidden_size_per_layer_input": 8}
    text |= {"layer_types": ["sliding_attention", "full_attention", "full_attention"], "num_kv_shared_layers": 0}
    vision = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision |= {"num_key_value_heads": 4, "head_dim": 8, "patch_size": 7, "pooling_kernel_size": 2}
    config = T.Gemma4Config(
        text_config={**text, "global_head_dim": 8, "sliding_window": 16}, audio_config=None, image_token_id=IMG,
        vision_config={**vision, "position_embedding_size": 16, "default_output_length": 4},
    )  # fmt: skip
    places = torch.cartesian_prod(torch.arange(4), torch.arange(4)).flip(-1)[None]  # (1, 16, 2) as x, y
    inputs = {"input_ids": ids(4), "pixel_values": torch.rand(1, 16, 147), "image_position_ids": places}
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMG).long()
    return T.Gemma4ForConditionalGeneration(config), inputs


@family
def ernie4_5_vl():
    text = {**TXT, "moe_num_experts": 2, "moe_k": 1, "moe_num_shared_experts": 1, "moe_intermediate_size": [16, 16]}
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "patch_size": 7}
    config = T.Ernie4_5_VLMoeConfig(
        text_config={**text, **RP}, vision_config={**vision, "spatial_merge_size": 2, "temporal_merge_size": 2},
        image_token_id=IMG, image_start_token_id=97, image_end_token_id=96, video_token_id=98,
        video_start_token_id=95, video_end_token_id=94,
    )  # fmt: skip
    inputs = {"input_ids": ids(4), "pixel_values": torch.randn(16, 147), "image_grid_thw": torch.tensor([[1, 4, 4]])}
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMG).int()
    return T.Ernie4_5_VLMoeForConditionalGeneration(config), inputs


@family
def video_llava():
    config = T.VideoLlavaConfig(
        text_config=t("llama"), vision_config=CLIPV, image_token_id=IMG, video_token_id=98, vision_feature_layer=-1
    )
    inputs = {"input_ids": ids(4), "pixel_values_images": torch.randn(1, 3, 28, 28)}
    return T.VideoLlavaForConditionalGeneration(config), inputs


@family
def idefics():
    """Its image enters by cross-attention."""
    vision = {"embed_dim": 24, "image_size": 28, "intermediate_size": 48, "patch_size": 14, "num_hidden_layers": 2}
    config = T.IdeficsConfig(
        vocab_size=120, additional_vocab_size=0, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, cross_layer_interval=1, vision_config={**vision, "num_attention_heads": 4},
        use_resampler=False, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    words = ids(0)
    inputs = {
        "input_ids": words,
        "attention_mask": torch.ones_like(words),
        "pixel_values": torch.randn(1, 1, 3, 28, 28),
    }
    inputs["image_attention_mask"] = torch.ones(1, words.shape[1], 1, dtype=torch.long)
    return T.IdeficsForVisionText2Text(config), inputs
