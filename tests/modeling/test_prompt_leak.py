"""The router sees the prompt and nothing of the answer: not in training, not without a cache, not through padding."""

import pytest
import torch
from tiny_models import LANGUAGES, ROUTERS, SCOPES, Sample, batch_of, open_model

pytestmark = pytest.mark.numerics

ANSWERS = ((20, 21, 22), (30, 31, 32))


def routed_embeddings(model, batch):
    """What the language model reads, (B, T, D), for a training batch."""
    batch = dict(batch)
    ids, mask, labels = batch.pop("input_ids"), batch.pop("attention_mask"), batch.pop("labels", None)
    pictures = dict.fromkeys(("pixel_values", "tag_input_ids", "tag_attention_mask", "tag_scores", "vision_features"))
    with torch.no_grad():
        return model.model.read_inputs(ids, None, mask, None, labels, None, **{**pictures, **batch})[0]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("router", ROUTERS)
def test_another_answer_leaves_the_routed_prompt_alone(router, scope):
    model = open_model(router_type=router, router_scope=scope)
    routed = []
    for answer in ANSWERS:
        batch = batch_of(model, [Sample(answer=answer), Sample(pictures=(2, 3), answer=answer)], labels=True)
        prompt = batch["labels"] == -100
        routed.append(routed_embeddings(model, batch)[prompt])
    assert torch.equal(*routed)


@pytest.mark.parametrize("router", ["gate", "channel", "reliability"])
def test_answer_tokens_are_not_routed_themselves(router):
    model = open_model(router_type=router, router_scope="prompt")
    batch = batch_of(model, Sample(), labels=True)
    answer = batch["labels"] != -100
    plain = model.get_input_embeddings()(batch["input_ids"])
    assert torch.equal(routed_embeddings(model, batch)[answer], plain[answer])


@pytest.mark.parametrize("router", ["gate", "channel", "reliability"])
def test_the_question_is_what_scope_prompt_adds(router):
    """In scope "prompt" another question routes the picture differently, in scope "image" it cannot."""
    image_tokens = {}
    for scope in SCOPES:
        model = open_model(router_type=router, router_scope=scope)
        rows = []
        for question in ((7, 8, 9), (40, 41, 42)):
            batch = batch_of(model, Sample(question=question), answers=False)
            rows.append(routed_embeddings(model, batch)[:, 1 : 1 + model.config.num_image_tokens])
        image_tokens[scope] = torch.equal(*rows)
    assert image_tokens == {"image": True, "prompt": False}


def test_training_in_scope_prompt_wants_to_know_where_the_prompt_ends():
    model = open_model(router_type="gate", router_scope="prompt").train()
    batch = batch_of(model, Sample())
    with pytest.raises(ValueError, match="without labels or prompt_mask"):
        model(**batch)
    prompt_mask = batch_of(model, Sample(), labels=True)["labels"] == -100
    model(**batch, prompt_mask=prompt_mask)


def test_prompt_mask_says_the_same_as_labels():
    model = open_model(router_type="channel", router_scope="prompt")
    batch = batch_of(model, [Sample(), Sample(question=(4,))], labels=True)
    labels = batch.pop("labels")
    with torch.no_grad():
        by_labels = model(**batch, labels=labels).logits
        by_mask = model(**batch, prompt_mask=labels == -100).logits
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(by_labels[real], by_mask[real])


def test_an_earlier_answer_of_a_conversation_ends_the_prompt():
    """Two turns, both supervised: the second question stands behind a label and must not reach the first answer."""
    model = open_model(router_type="gate", router_scope="prompt")
    routed = []
    for second_question in ((40, 41), (50, 51)):
        batch = batch_of(model, Sample(answer=(20, 21, *second_question, 22)), labels=True)
        batch["labels"][:, -4:-2] = -100  # the second question
        routed.append(routed_embeddings(model, batch)[:, :-4])
    assert torch.equal(*routed)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_generation_without_a_cache_equals_generation_with_one(language, router, scope):
    """Without a cache every step reads the growing answer again: the route must stay the prompt's."""
    model = open_model(language, router_type=router, router_scope=scope)
    batch = batch_of(model, [Sample(), Sample(pictures=(2, 3), question=(11,))], side="left", answers=False)
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    settings |= {"return_dict_in_generate": True, "output_logits": True}
    cached = model.generate(**batch, **settings, use_cache=True)
    uncached = model.generate(**batch, **settings, use_cache=False)
    assert torch.equal(cached.sequences, uncached.sequences)
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(uncached.logits), atol=5e-4, rtol=1e-3)


@pytest.mark.parametrize("router", ROUTERS)
def test_teacher_forcing_equals_generation(router):
    """Logits of a training batch are those that generation sees: the same prompt, routed in the same way."""
    model = open_model(router_type=router, router_scope="prompt")
    prompt = batch_of(model, Sample(), answers=False)
    settings = {"max_new_tokens": 3, "min_new_tokens": 3, "return_dict_in_generate": True, "output_logits": True}
    made = model.generate(**prompt, **settings, do_sample=False)
    answer = tuple(made.sequences[0, prompt["input_ids"].shape[1] :].tolist())
    batch = batch_of(model, Sample(answer=answer), labels=True)
    with torch.no_grad():
        logits = model(**batch).logits[0, -2 - len(answer) : -2]
    torch.testing.assert_close(logits, torch.cat(made.logits), atol=5e-4, rtol=1e-3)
