"""Tiny random vision-language models of transformers with one valid input each: `FAMILIES[name]() -> (model, inputs)`.

The token that stands for the image is 99 in all of them, unless the family has its own way.
"""

import torch
import transformers as T

TXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 120,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CLIPV = {
    "model_type": "clip_vision_model",
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
    "projection_dim": 24,
}
SIGV = {
    "model_type": "siglip_vision_model",
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
IMG = 99


def t(model_type, **k):
    return {**TXT, "model_type": model_type, **k}


def ids(n, pre=(5, 6), post=(7, 8, 9)):
    return torch.tensor([[*pre, *([IMG] * n), *post]])


F = {}


def fam(name):
    def deco(f):
        F[name] = f
        return f

    return deco


@fam("llava")
def _():
    c = T.LlavaConfig(text_config=t("llama"), vision_config=CLIPV, image_token_id=IMG, vision_feature_layer=-1)
    return T.LlavaForConditionalGeneration(c), {"input_ids": ids(4), "pixel_values": torch.randn(1, 3, 28, 28)}


@fam("llava_next")
def _():
    c = T.LlavaNextConfig(
        text_config=t("llama"),
        vision_config=CLIPV,
        image_token_id=IMG,
        vision_feature_layer=-1,
        image_grid_pinpoints=[[28, 56], [56, 28], [56, 56]],
    )
    m = T.LlavaNextForConditionalGeneration(c)
    pv = torch.randn(1, 3, 3, 28, 28)
    sz = torch.tensor([[28, 56]])
    n = m.model.get_image_features(pv, image_sizes=sz, return_dict=True).pooler_output[0].shape[0]
    return m, {"input_ids": ids(n), "pixel_values": pv, "image_sizes": sz}


@fam("llava_onevision")
def _():
    c = T.LlavaOnevisionConfig(
        text_config=t("qwen2"),
        vision_config=SIGV,
        image_token_id=IMG,
        video_token_id=98,
        vision_feature_layer=-1,
        image_grid_pinpoints=[[28, 56], [56, 28], [56, 56]],
    )
    m = T.LlavaOnevisionForConditionalGeneration(c)
    pv = torch.randn(1, 3, 3, 28, 28)
    sz = torch.tensor([[28, 56]])
    n = m.model.get_image_features(pv, image_sizes=sz, return_dict=True).pooler_output[0].shape[0]
    return m, {"input_ids": ids(n), "pixel_values": pv, "image_sizes": sz}


def idefics(cls, cfg, txt):
    c = cfg(
        text_config=t(txt),
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 28,
            "patch_size": 7,
        },
        image_token_id=IMG,
        scale_factor=2,
    )
    return cls(c), {"input_ids": ids(4), "pixel_values": torch.randn(1, 1, 3, 28, 28)}


F["idefics3"] = lambda: idefics(T.Idefics3ForConditionalGeneration, T.Idefics3Config, "llama")
F["smolvlm"] = lambda: idefics(T.SmolVLMForConditionalGeneration, T.SmolVLMConfig, "llama")


@fam("idefics2")
def _():
    c = T.Idefics2Config(
        text_config=t("mistral"),
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 28,
            "patch_size": 14,
        },
        perceiver_config={
            "hidden_size": 32,
            "resampler_n_latents": 3,
            "resampler_depth": 1,
            "resampler_n_heads": 4,
            "num_key_value_heads": 2,
            "resampler_head_dim": 8,
        },
        image_token_id=IMG,
    )
    return T.Idefics2ForConditionalGeneration(c), {"input_ids": ids(3), "pixel_values": torch.randn(1, 1, 3, 28, 28)}


def qwen(cfg, cls, vis, txt):
    c = cfg(
        text_config={**TXT, **txt},
        vision_config=vis,
        image_token_id=IMG,
        video_token_id=98,
        vision_start_token_id=97,
        vision_end_token_id=96,
    )
    m = cls(c)
    grid = torch.tensor([[1, 4, 4]])
    ps = vis["patch_size"]
    pv = torch.randn(16, 3 * 2 * ps * ps)
    i = ids(4)
    return m, {"input_ids": i, "pixel_values": pv, "image_grid_thw": grid, "mm_token_type_ids": (i == IMG).int()}


RP = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}}
F["qwen2_vl"] = lambda: qwen(
    T.Qwen2VLConfig,
    T.Qwen2VLForConditionalGeneration,
    {
        "depth": 2,
        "embed_dim": 32,
        "hidden_size": 32,
        "num_heads": 4,
        "mlp_ratio": 2,
        "patch_size": 7,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
    RP,
)
F["qwen2_5_vl"] = lambda: qwen(
    T.Qwen2_5_VLConfig,
    T.Qwen2_5_VLForConditionalGeneration,
    {
        "depth": 2,
        "hidden_size": 32,
        "out_hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 4,
        "patch_size": 7,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "fullatt_block_indexes": [0, 1],
        "window_size": 28,
    },
    RP,
)
F["qwen3_vl"] = lambda: qwen(
    T.Qwen3VLConfig,
    T.Qwen3VLForConditionalGeneration,
    {
        "depth": 3,
        "hidden_size": 32,
        "out_hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 4,
        "patch_size": 7,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 1],
    },
    RP,
)


@fam("qwen3_5")
def _():
    return qwen(
        T.Qwen3_5Config,
        T.Qwen3_5ForConditionalGeneration,
        {
            "depth": 2,
            "hidden_size": 32,
            "out_hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 4,
            "patch_size": 7,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "num_position_embeddings": 16,
        },
        {**RP, "layer_types": ["full_attention"] * 3},
    )


@fam("paligemma")
def _():
    c = T.PaliGemmaConfig(
        text_config=t("gemma"),
        vision_config={**SIGV},
        image_token_id=IMG,
        projection_dim=32,
        hidden_size=32,
        pad_token_id=0,
    )
    i = ids(4, pre=())
    return T.PaliGemmaForConditionalGeneration(c), {
        "input_ids": i,
        "pixel_values": torch.randn(1, 3, 28, 28),
        "token_type_ids": torch.zeros_like(i),
    }


@fam("internvl")
def _():
    c = T.InternVLConfig(
        text_config=t("qwen2"),
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 28,
            "patch_size": 7,
        },
        image_token_id=IMG,
        downsample_ratio=0.5,
    )
    return T.InternVLForConditionalGeneration(c), {"input_ids": ids(4), "pixel_values": torch.randn(1, 3, 28, 28)}


@fam("gemma3")
def _():
    c = T.Gemma3Config(
        text_config=t("gemma3_text"),
        vision_config={**SIGV, "vision_use_head": False},
        image_token_id=IMG,
        mm_tokens_per_image=4,
        boi_token_id=97,
        eoi_token_id=96,
    )
    i = ids(4)
    return T.Gemma3ForConditionalGeneration(c), {
        "input_ids": i,
        "pixel_values": torch.randn(1, 3, 28, 28),
        "token_type_ids": (i == IMG).long(),
    }


def blip(dec):
    tc = (
        {
            "model_type": "opt",
            "hidden_size": 32,
            "ffn_dim": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "vocab_size": 120,
            "word_embed_proj_dim": 32,
            "max_position_embeddings": 128,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        if dec
        else {
            "model_type": "t5",
            "d_model": 32,
            "d_ff": 64,
            "d_kv": 8,
            "num_layers": 2,
            "num_decoder_layers": 2,
            "num_heads": 4,
            "vocab_size": 120,
            "pad_token_id": 0,
            "eos_token_id": 2,
            "decoder_start_token_id": 0,
        }
    )
    c = T.Blip2Config(
        text_config=tc,
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 28,
            "patch_size": 14,
        },
        qformer_config={
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "encoder_hidden_size": 24,
            "vocab_size": 50,
        },
        num_query_tokens=4,
        image_token_id=IMG,
    )
    kw = {"input_ids": ids(4, pre=()), "pixel_values": torch.randn(1, 3, 28, 28)}
    if not dec:
        kw["decoder_input_ids"] = torch.tensor([[0, 3]])
    return T.Blip2ForConditionalGeneration(c), kw


F["blip2_opt"] = lambda: blip(True)
F["blip2_t5"] = lambda: blip(False)


@fam("instructblip")
def _():
    tc = {
        "model_type": "opt",
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "vocab_size": 120,
        "word_embed_proj_dim": 32,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    c = T.InstructBlipConfig(
        text_config=tc,
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 28,
            "patch_size": 14,
        },
        qformer_config={
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "encoder_hidden_size": 24,
            "vocab_size": 50,
        },
        num_query_tokens=4,
        image_token_id=IMG,
    )
    return T.InstructBlipForConditionalGeneration(c), {
        "input_ids": ids(4, pre=()),
        "pixel_values": torch.randn(1, 3, 28, 28),
        "qformer_input_ids": torch.tensor([[3, 4, 5]]),
        "qformer_attention_mask": torch.ones(1, 3, dtype=torch.long),
    }


@fam("florence2")
def _():
    c = T.Florence2Config(
        text_config={
            "model_type": "bart",
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "vocab_size": 120,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 2,
            "max_position_embeddings": 128,
        },
        vision_config={
            "embed_dim": [16, 16],
            "num_heads": [2, 2],
            "num_groups": [2, 2],
            "depths": [1, 1],
            "patch_size": [7, 3],
            "patch_stride": [4, 2],
            "patch_padding": [3, 1],
            "patch_prenorm": [False, True],
            "window_size": 4,
            "projection_dim": 32,
            "max_position_embeddings": 20,
            "max_temporal_embeddings": 4,
        },
        image_token_id=IMG,
    )
    m = T.Florence2ForConditionalGeneration(c)
    pv = torch.randn(1, 3, 28, 28)
    n = m.model.get_image_features(pv, return_dict=True).pooler_output.shape[1]
    return m, {"input_ids": ids(n, pre=()), "pixel_values": pv, "decoder_input_ids": torch.tensor([[2, 3]])}


@fam("janus")
def _():
    c = T.JanusConfig(
        text_config=t("llama"),
        vision_config={
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 28,
            "patch_size": 14,
            "projection_dim": 32,
            "mlp_ratio": 2,
            "depth": 2,
            "num_image_tokens": 4,
        },
        vq_config={
            "embed_dim": 8,
            "num_embeddings": 20,
            "latent_channels": 8,
            "base_channels": 32,
            "channel_multiplier": [1, 1],
            "num_res_blocks": 1,
            "projection_dim": 32,
            "image_token_embed_dim": 32,
            "num_patches": 4,
        },
        image_token_id=IMG,
    )
    return T.JanusForConditionalGeneration(c), {"input_ids": ids(4), "pixel_values": torch.randn(1, 3, 28, 28)}


@fam("mistral3")
def _():
    c = T.Mistral3Config(
        text_config=t("mistral"),
        vision_config={
            "model_type": "pixtral",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 56,
            "patch_size": 14,
            "head_dim": 8,
        },
        image_token_id=IMG,
        spatial_merge_size=2,
        vision_feature_layer=-1,
    )
    return T.Mistral3ForConditionalGeneration(c), {
        "input_ids": ids(4),
        "pixel_values": torch.randn(1, 3, 56, 56),
        "image_sizes": torch.tensor([[56, 56]]),
    }


@fam("glm4v")
def _():
    c = T.Glm4vConfig(
        text_config={
            **TXT,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [1, 1, 2],
                "rope_theta": 10000.0,
                "partial_rotary_factor": 1.0,
            },
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "out_hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 4,
            "patch_size": 7,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "image_size": 28,
        },
        image_token_id=IMG,
        video_token_id=98,
        image_start_token_id=97,
        image_end_token_id=96,
        video_start_token_id=95,
        video_end_token_id=94,
    )
    m = T.Glm4vForConditionalGeneration(c)
    i = ids(4)
    return m, {
        "input_ids": i,
        "pixel_values": torch.randn(16, 3 * 2 * 49),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
        "mm_token_type_ids": (i == IMG).int(),
    }


@fam("kosmos2")
def _():
    c = T.Kosmos2Config(
        text_config={
            "vocab_size": 120,
            "embed_dim": 32,
            "layers": 3,
            "ffn_dim": 64,
            "attention_heads": 4,
            "max_position_embeddings": 128,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 28,
            "patch_size": 14,
        },
        latent_query_num=4,
    )
    i = ids(4)
    return T.Kosmos2ForConditionalGeneration(c), {
        "input_ids": i,
        "pixel_values": torch.randn(1, 3, 28, 28),
        "image_embeds_position_mask": (i == IMG).long(),
    }


@fam("mllama")
def _():
    c = T.MllamaConfig(
        text_config=dict(
            **{**TXT, "num_hidden_layers": 4},
            cross_attention_layers=[1, 3],
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 4,
            "image_size": 28,
            "patch_size": 14,
            "max_num_tiles": 2,
            "vision_output_dim": 72,
            "intermediate_layers_indices": [0, 1],
            "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
        },
        image_token_id=IMG,
    )
    i = ids(1)
    return T.MllamaForConditionalGeneration(c), {
        "input_ids": i,
        "pixel_values": torch.randn(1, 1, 2, 3, 28, 28),
        "aspect_ratio_ids": torch.tensor([[1]]),
        "aspect_ratio_mask": torch.tensor([[[1, 0]]]),
        "cross_attention_mask": torch.ones(1, i.shape[1], 1, 2, dtype=torch.long),
    }


FAMILIES = F
