"""Language models of other families, whose layers, norms and attentions go by other names."""

import numpy as np
import pytest
import torch
from small_vlms import QUESTIONS, image_tokens, noise_images, poise_around
from transformers import GemmaConfig, GPT2Config, GPTNeoXConfig, MistralConfig, OPTConfig, Phi3Config, Qwen3Config

from poise.evaluation.interpretability.logit_lens import logit_lens
from poise.evaluation.probing.answers import greedy_answers
from poise.evaluation.probing.attention_blocking import block_attention
from poise.evaluation.probing.image_features import Change

pytestmark = pytest.mark.numerics

SHAPE = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES = {
    GPT2Config: {"n_embd": 48, "n_layer": 2, "n_head": 4},
    OPTConfig: {
        "hidden_size": 48, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 48,
    },
    GPTNeoXConfig: SHAPE,
    Phi3Config: {**SHAPE, "num_key_value_heads": 2},
    GemmaConfig: {**SHAPE, "num_key_value_heads": 2, "head_dim": 16},
    Qwen3Config: {**SHAPE, "num_key_value_heads": 2, "head_dim": 16},
    MistralConfig: {**SHAPE, "num_key_value_heads": 2, "sliding_window": 12},
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
@torch.no_grad()
def test_lens_and_knockout(family):
    vlm = poise_around(family, **FAMILIES[family])
    prompts = vlm.prompts()
    keys = image_tokens(prompts, [6, 7, 8])
    noise = Change(keys, 5 * torch.randn(int(keys.sum()), 48))
    for name in ("eager", "sdpa"):
        vlm.parts.reader.set_attn_implementation(name)
        with block_attention(vlm.parts, ~keys, keys, answer_queries=True):
            clean, changed = prompts.logits(), prompts.logits([noise])
            assert all(greedy_answers(prompts, max_new_tokens=3))
        assert torch.equal(clean[:, -1], changed[:, -1])
    assert not torch.equal(prompts.logits()[:, -1], clean[:, -1])

    lens = logit_lens(vlm.model, vlm.processor, noise_images(1)[0], QUESTIONS[0])
    alone = vlm.prompts(1, with_tags=False)
    expected = alone.logits()[0][alone.placeholders[0]].softmax(-1).topk(5).values
    np.testing.assert_allclose(lens.top_probabilities[-1], expected.numpy(), rtol=1e-3)
