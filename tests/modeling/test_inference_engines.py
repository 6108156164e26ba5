"""Inference engines merge embeddings themselves: an emulation of what vLLM's and SGLang's Transformers backends do.

Images of many requests are encoded in one call of `get_image_features`, whose per-image inputs are stacked; the engine
writes the rows into the embedded prompts, and drives the base model with embeddings, positions and a cache of its own.
"""

import pytest
import torch
from tiny_models import PLACEHOLDER, ROUTERS, Sample, batch_of, open_model
from transformers import AutoConfig, AutoModel, DynamicCache
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from poise.modeling import PoiseModel

pytestmark = pytest.mark.numerics

REQUESTS = (
    Sample(images=(1,)),
    Sample(images=(2, 3), question=(10, 11, 12), tags=(True, False)),
    Sample(images=(4,), question=(15,), tags=(False,)),
)
NEW_TOKENS = 4


def engine_answers(model, requests):
    """Greedy answers of all requests, one list of tokens each."""
    prompts = [batch_of(model, request, answers=False) for request in requests]
    texts = ("input_ids", "attention_mask")
    images = {name: [] for name in prompts[0] if name not in texts}
    for prompt in prompts:
        for name, rows in images.items():
            # What a processor with a constant `tag_length` returns for an image without tags.
            rows.append(prompt[name] if name in prompt else torch.zeros_like(rows[0][:1]))
    features = model.base_model.get_image_features(**{k: torch.cat(v) for k, v in images.items()}, return_dict=True)
    rows = list(features.pooler_output)  # of all requests, in order
    answers = []
    for prompt, request in zip(prompts, requests, strict=True):
        own, rows = rows[: len(request.images)], rows[len(request.images) :]
        ids = prompt["input_ids"]
        embeddings = model.get_input_embeddings()(ids)  # (1, T, D)
        embeddings[ids == PLACEHOLDER] = torch.cat(own)
        cache, positions, answer = DynamicCache(), torch.arange(ids.shape[1])[None], []
        for _ in range(NEW_TOKENS):
            states = model.base_model(
                input_ids=None, inputs_embeds=embeddings, position_ids=positions, past_key_values=cache,
                use_cache=True, return_dict=False,
            )[0]  # fmt: skip
            logits = model.get_output_embeddings()(states[:, -1])  # (1, V)
            logits[:, PLACEHOLDER] = -torch.inf
            answer.append(int(logits.argmax()))
            embeddings = model.get_input_embeddings()(torch.tensor([answer[-1:]]))
            positions = positions[:, -1:] + 1
        answers.append(answer)
    return answers


@pytest.mark.parametrize("router", ROUTERS)
@torch.no_grad()
def test_an_engine_gives_the_answers_of_generate(router):
    model = open_model(router_type=router)
    settings = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": -1}
    expected = [
        model.generate(**batch_of(model, request, answers=False), **settings)[0, -NEW_TOKENS:].tolist()
        for request in REQUESTS
    ]
    assert engine_answers(model, REQUESTS) == expected


@pytest.mark.parametrize("language, can", [("llama", True), ("t5", False)])
def test_a_published_model_says_by_its_class_whether_engines_can_drive_it(language, can, tmp_path):
    """Engines resolve the `AutoModel` of a repository and ask that class; weights come later."""
    open_model(language).save_pretrained(tmp_path)
    reference = AutoConfig.from_pretrained(tmp_path).auto_map["AutoModel"]
    published = get_class_from_dynamic_module(reference, tmp_path)
    assert published.is_backend_compatible() is can
    assert published.from_pretrained(tmp_path)._supports_attention_backend is can
    assert isinstance(AutoModel.from_pretrained(tmp_path), PoiseModel)


def test_engines_are_told_which_models_they_can_drive():
    decoder, encoder_decoder = open_model(), open_model("t5")
    assert decoder._supports_attention_backend and decoder.base_model._supports_attention_backend
    assert not encoder_decoder._supports_attention_backend
    assert not encoder_decoder.base_model._supports_attention_backend
    assert type(decoder.base_model).is_backend_compatible()
    assert decoder.base_model.get_encoder("image") is decoder.base_model.vision_tower
