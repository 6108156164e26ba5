"""The router sees the prompt and nothing of the answer: not in training, not without a cache, not through padding."""

import pytest
import torch
from tiny_models import LANGUAGES, ROUTERS, Sample, batch_of, open_model

pytestmark = pytest.mark.numerics

ANSWERS = ((20, 21, 22), (30, 31, 32))


def routed_embeddings(model, batch):
    """What the language model reads, (B, T, D), for a training batch."""
    with torch.no_grad():
        return model.model.read_streams(**{k: v for k, v in batch.items() if k != "labels"})[0]["inputs_embeds"]


@pytest.mark.parametrize("router", ROUTERS)
def test_another_answer_leaves_the_routed_prompt_alone(router):
    model = open_model(router_type=router)
    routed = []
    for answer in ANSWERS:
        batch = batch_of(model, [Sample(answer=answer), Sample(images=(2, 3), answer=answer)], labels=True)
        prompt = batch["labels"] == -100
        routed.append(routed_embeddings(model, batch)[prompt])
    assert torch.equal(*routed)


@pytest.mark.parametrize("router", ["gate", "channel", "reliability"])
def test_text_is_not_routed_itself(router):
    model = open_model(router_type=router)
    batch = batch_of(model, Sample(), labels=True)
    text = batch["input_ids"] != model.config.image_token_id
    plain = model.get_input_embeddings()(batch["input_ids"])
    assert torch.equal(routed_embeddings(model, batch)[text], plain[text])


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_generation_without_a_cache_equals_generation_with_one(language, router):
    """Without a cache every step reads the growing answer again: the route must stay the prompt's."""
    model = open_model(language, router_type=router)
    batch = batch_of(model, [Sample(), Sample(images=(2, 3), question=(11,))], side="left", answers=False)
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    settings |= {"return_dict_in_generate": True, "output_logits": True}
    cached = model.generate(**batch, **settings, use_cache=True)
    uncached = model.generate(**batch, **settings, use_cache=False)
    assert torch.equal(cached.sequences, uncached.sequences)
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(uncached.logits), atol=5e-4, rtol=1e-3)


@pytest.mark.parametrize("router", ROUTERS)
def test_teacher_forcing_equals_generation(router):
    """Logits of a training batch are those that generation sees: the same prompt, routed in the same way."""
    model = open_model(router_type=router)
    prompt = batch_of(model, Sample(), answers=False)
    settings = {"max_new_tokens": 3, "min_new_tokens": 3, "return_dict_in_generate": True, "output_logits": True}
    made = model.generate(**prompt, **settings, do_sample=False)
    answer = tuple(made.sequences[0, prompt["input_ids"].shape[1] :].tolist())
    batch = batch_of(model, Sample(answer=answer), labels=True)
    with torch.no_grad():
        logits = model(**batch).logits[0, -2 - len(answer) : -2]
    torch.testing.assert_close(logits, torch.cat(made.logits), atol=5e-4, rtol=1e-3)
