"""Tiny random VLMs of families whose sizes no rule makes small, in the form of `tiny_families`: one entry each."""

import functools

import torch
import transformers as T
from shrunk_families import with_words
from tiny_families import CLIPV, IMG, RP, SIGV, ids, t
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 7}
QWEN_TOWER = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "patch_size": 7,
              "out_hidden_size": 32}  # fmt: skip
SAM = {"hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 64,
       "patch_size": 8, "global_attn_indexes": [1], "window_size": 4, "mlp_dim": 64}  # fmt: skip
OCR_SAM = {**SAM, "downsample_channels": [16, 32], "initializer_range": 0.02}
SMALL_POSITIONS = {"pos_emb_height": 8, "pos_emb_width": 8}
LATENT = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
          "num_key_value_heads": 4}  # fmt: skip
EXPERTS = {"n_routed_experts": 4, "num_local_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2,
           "moe_intermediate_size": 32, "n_group": 1, "topk_group": 1}  # fmt: skip
INDEX = {"index_topk": 8, "index_head_dim": 8, "index_n_heads": 2}
WINDOWED = {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8, "sliding_window_size": 16}
SIDES = {"video_token_id": 98, "vision_start_token_id": 97, "vision_end_token_id": 96}
RECENT = {}


def text(model_type, *more, **fields):
    """Of a language model; `head_dim` follows from its width where a configuration works it out."""
    made = {**t(model_type), **{name: value for some in more for name, value in some.items()}, **fields}
    return {name: value for name, value in made.items() if value is not None}


def family(name, inputs, image_token="image_token_id", **config):
    RECENT[name.replace("kosmos-2.5", "kosmos2_5")] = functools.partial(
        build, name, inputs, {image_token: IMG, **config}
    )


def build(name, inputs, config):
    config = T.CONFIG_MAPPING[name](**config)
    model = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)](config).eval()
    return model, with_words(model, inputs())


def patches(frames=2):
    """4 × 4 patches in a row, as Qwen2-VL's."""
    return {"pixel_values": torch.randn(16, 3 * frames * 49), "image_grid_thw": torch.tensor([[1, 4, 4]])}


def square(side, **more):
    return {"pixel_values": torch.randn(1, 3, side, side), **more}


def sized(side):
    return square(side, image_sizes=torch.tensor([[side, side]]))


# Two towers, of which one sees the image at a higher resolution.
family(
    "deepseek_vl_hybrid", lambda: square(56, high_res_pixel_values=torch.randn(1, 3, 64, 64)), text_config=t("llama"),
    vision_config={**SIGV, "image_size": 56}, high_res_vision_config={**SAM, "model_type": "sam_vision_model"},
)  # fmt: skip
family(
    "shieldgemma2", lambda: square(28), text_config=t("gemma3_text"), mm_tokens_per_image=4, boi_token_id=97,
    vision_config={**SIGV, "vision_use_head": False}, eoi_token_id=96,
)  # fmt: skip
# Its images become words of a vocabulary, a word of its own behind each row.
family(
    "emu3", lambda: sized(8), text_config=text("emu3_text_model", head_dim=None),
    vocabulary_map={**{f"<|visual token {i:06d}|>": 60 + i for i in range(20)}, "<image>": IMG, "<|extra_200|>": 90},
    vq_config={"codebook_size": 20, "base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1,
               "attn_resolutions": [], "hidden_size": 32},
)  # fmt: skip
# No vision tower: patches are embedded.
family(
    "gemma4_unified", lambda: {
        "pixel_values": torch.rand(1, 4, 588),
        "image_position_ids": torch.cartesian_prod(torch.arange(2), torch.arange(2)).flip(-1)[None],
    },
    text_config=text("gemma4_unified_text", global_head_dim=8, sliding_window=16, num_kv_shared_layers=0,
                     layer_types=["sliding_attention", "full_attention", "full_attention"]),
    vision_config={"patch_size": 7, "pooling_kernel_size": 2, "mm_embed_dim": 32, "mm_posemb_size": 16,
                   "output_proj_dims": 32},
)  # fmt: skip
# Its image tokens are nothing at first: features are added in several layers.
family(
    "granite4_vision",
    lambda: {"pixel_values": torch.randn(1, 3, 3, 56, 56), "image_sizes": torch.tensor([[56, 112]])},
    image_token="image_token_index", text_config=t("granite4_vision_text"), image_grid_pinpoints=[[56, 112]],
    vision_config={**CLIPV, "hidden_size": 64, "image_size": 56, "num_hidden_layers": 3}, downsample_rate="2/4",
    deepstack_layer_map=[[1, 0], [2, 1]], spatial_target_layers=[0, 1, 2],
    qformer_config={"model_type": "blip_2_qformer", "num_hidden_layers": 1, "intermediate_size": 64,
                    "cross_attention_frequency": 1, "vocab_size": 50, "max_position_embeddings": 64},
)  # fmt: skip
family(
    "hunyuan_vl", lambda: patches(1), im_start_id=97, im_end_id=96, im_newline_id=95,
    text_config=text("hunyuan_vl_text", rope_parameters={"rope_type": "default", "rope_theta": 1e4,
                                                         "mrope_section": [1, 1, 1, 1]}),
    vision_config={**TOWER, "out_hidden_size": 32, "img_max_token_num": 64, "max_image_size": 56, "min_image_size": 28},
)  # fmt: skip
family(
    "kimi_k25", lambda: {**patches(), "pixel_values": torch.randn(16, 3, 7, 7)}, projection_hidden_size=32, **SIDES,
    text_config=text("deepseek_v3", LATENT, EXPERTS, first_k_dense_replace=1),
    vision_config={**TOWER, **SMALL_POSITIONS},
)  # fmt: skip
MUSE = {
    "vision_config": {**TOWER, **SMALL_POSITIONS, "max_position_embeddings": 64,
                      "layer_types": ["window_attention", "full_attention"]},
    "out_hidden_size": 128, "projector_hidden_size": 32, "video_token_id": 98,
}  # fmt: skip
family("muse_glimmer", patches, text_config=text("muse_glimmer_text", sliding_window=16), **MUSE)
family(
    "muse_spark", patches, audio_token_id=97, **MUSE,
    text_config=text("muse_spark_text", EXPERTS, sliding_window=16, moe_hidden_size=32),
    audio_config={"patch_sizes": [4], "hidden_sizes": [16], "depths": [1], "num_hidden_layers": 1,
                  "out_hidden_size": 32},
)  # fmt: skip
family(
    "cohere_compass", patches, **SIDES,
    text_config=text("cohere_compass_text", head_dim=None, logit_scale=0.5, rope_parameters={
        "full_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}),
    vision_config={**QWEN_TOWER, "depth": 3, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]},
)  # fmt: skip
OCR_TEXT = {"head_dim": None, "num_key_value_heads": 4, "mlp_layer_types": ["dense", "sparse", "sparse"]}
family(
    "deepseek_ocr2", lambda: square(64), text_config=text("deepseek_ocr2_text", EXPERTS, OCR_TEXT),
    vision_config={"sam_config": OCR_SAM, "encoder_config": text("deepseek_ocr2_encoder", head_dim=None)},
)  # fmt: skip
family(
    "unlimited_ocr", lambda: square(64), text_config=text("unlimited_ocr_text", EXPERTS, OCR_TEXT, sliding_window=16),
    vision_config={"sam_config": OCR_SAM, "encoder_config": {**TOWER, "image_size": 56, "patch_size": 14}},
)  # fmt: skip
# Layers that attend to blocks which an indexer chooses.
family(
    "minimax_m3_vl", patches, image_token="image_token_index", video_token_index=98, projector_hidden_size=32,
    text_config=text("minimax_m3_vl_text", num_local_experts=4, num_experts_per_tok=2, dense_intermediate_size=64,
                     shared_intermediate_size=32, rotary_dim=4, index_n_heads=2, index_head_dim=8, index_block_size=4,
                     index_topk_blocks=2, mlp_layer_types=["dense", "sparse", "sparse"],
                     layer_types=["full_attention", "minimax_m3_sparse", "minimax_m3_sparse"]),
    vision_config={**TOWER, "image_size": 28},
)  # fmt: skip
family(
    "mistral_large4", lambda: sized(56), image_token="image_token_index",
    text_config=text("mistral_large4_text", LATENT, EXPERTS, INDEX),
    vision_config={**TOWER, "model_type": "pixtral", "image_size": 56, "patch_size": 14, "head_dim": 8},
)  # fmt: skip
family(
    "qwen4_exp", patches, **SIDES, vision_config={**QWEN_TOWER, "num_position_embeddings": 16},
    text_config=text("qwen4_exp_text", RP, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8,
                     linear_value_head_dim=8, moe_intermediate_size=32, shared_expert_intermediate_size=32,
                     num_experts=4, num_experts_per_tok=2, hc_count=2, hc_lowrank=8, indexer_n_heads=2,
                     indexer_kv_heads=1,
                     indexer_head_dim=8, indexer_budget=8, indexer_compress_ratio=2,
                     layer_types=["linear_attention", "indexed_attention", "indexed_attention"]),
)  # fmt: skip
# What joins the outputs of its layers is called an attention, too.
family(
    "inkling2",
    lambda: {"pixel_values": torch.randn(4, 14, 14, 3), "image_grid_thw": torch.tensor([[1, 2, 2]])},
    text_config=text("inkling2_text", WINDOWED, unpadded_vocab_size=120, d_rel=8, rel_extent=64,
                     moe_intermediate_size=32, n_routed_experts=4, num_experts_per_tok=2,
                     layer_types=["hybrid_sliding", "hybrid", "hybrid"]),
    vision_config={**TOWER, "posemb_grid_size": 8, "projection_hidden_dim": 32, "text_hidden_size": 32},
)  # fmt: skip
family(
    "glm5_next", patches, video_token_id=98, image_start_token_id=97, image_end_token_id=96, video_start_token_id=95,
    video_end_token_id=94,
    text_config=text("glm5_next_text", LATENT, EXPERTS, INDEX, qk_rope_head_dim=0, index_kpool=2, linear_head_dim=8,
                     linear_num_heads=4, hc_mult=2, mlp_layer_types=["dense", "sparse", "sparse"],
                     layer_types=["linear_attention", "indexed_attention", "indexed_attention"]),
    vision_config={**QWEN_TOWER, "image_size": 28, "projection_intermediate_size": 32},
)  # fmt: skip
family(
    "dots3_note", lambda: patches(1), video_token_id=98, audio_token_id=97,
    text_config=text("dots3_note_text", LATENT, EXPERTS, INDEX, head_dim=16, shared_experts_intermediate_size=32,
                     sliding_window=16, swa_num_attention_heads=4, swa_num_key_value_heads=4, swa_q_lora_rank=16,
                     swa_kv_lora_rank=16, swa_head_dim=16, swa_qk_nope_head_dim=8, swa_v_head_dim=8,
                     layer_types=["indexed_attention", "indexed_attention", "sliding_attention"]),
    vision_config={**TOWER, "adapter_in_dim": 32, "adapter_out_dim": 32, "moe_intermediate_size": 16,
                   "num_local_experts": 4, "mlp_layer_types": ["dense", "dense"]},
    audio_config={"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
                  "feature_size": 8, "downsample_hidden_size": 8, "adapter_input_size": 32, "adapter_out_dim": 32},
)  # fmt: skip
family(
    "nemotron_h_omni",
    lambda: {"pixel_values": torch.randn(16, 147), "image_grid_hw": torch.tensor([[4, 4]])},
    text_config=text("nemotron_h", layers_block_type=["mamba", "attention", "attention"], mamba_num_heads=4,
                     mamba_head_dim=8, ssm_state_size=8, n_groups=2, use_mamba_kernels=False),
    vision_config={**TOWER, "model_type": "radio", "image_size": 28, "torch_dtype": torch.float32,
                   "video_temporal_patch_size": 2},
    projector_hidden_size=32, vision_hidden_size=32, video_token_id=98, audio_token_id=97,
)  # fmt: skip


def flattened():
    mask = (ids(4) == IMG).long()
    sides = {"height": torch.tensor([4.0]), "width": torch.tensor([4.0])}
    return {"flattened_patches": torch.rand(1, 16, 29), "image_embeds_position_mask": mask, **sides}


family(
    "kosmos-2.5", flattened, latent_query_num=4,
    text_config={"vocab_size": 120, "embed_dim": 32, "layers": 3, "ffn_dim": 64, "attention_heads": 4,
                 "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    vision_config={**TOWER, "patch_embed_hidden_size": 27, "head_dim": 8, "max_num_patches": 16},
)  # fmt: skip
# The encoder puts its image behind the words.
family(
    "udop", lambda: square(28, bbox=torch.rand(1, 5, 4) / 2), vocab_size=120, d_model=32, d_kv=8, d_ff=64, num_layers=2,
    num_decoder_layers=2, num_heads=4, image_size=28, patch_size=7, pad_token_id=0, eos_token_id=2,
    decoder_start_token_id=0,
)  # fmt: skip
