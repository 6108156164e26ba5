"""Every way in which `generate` can be called gives what the plain forward pass gives."""

import pytest
import torch
from tiny_models import (
    LANGUAGES,
    MIXED,
    PLACEHOLDER,
    ROUTERS,
    VOCABULARY,
    Sample,
    batch_of,
    cached_features,
    open_model,
    padded,
    text_config,
)
from transformers import GenerationConfig, LlamaForCausalLM

pytestmark = pytest.mark.numerics

FOUR_TOKENS = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
WITH_LOGITS = {**FOUR_TOKENS, "return_dict_in_generate": True, "output_logits": True}
TWO = (Sample(), Sample(images=(2, 3), question=(11,), tags=(True, False)))
CLOSE = {"atol": 5e-4, "rtol": 1e-3}


def prompts(model, samples=TWO):
    return batch_of(model, samples, side="left", answers=False)


def logits_of(model, batch, **settings):
    """Logits of every generated token, (B, new tokens, V)."""
    return torch.stack(model.generate(**batch, **WITH_LOGITS, **settings).logits, dim=1)


def every_route(test):
    test = pytest.mark.parametrize("language", LANGUAGES)(test)
    test = pytest.mark.parametrize("router", ROUTERS)(test)
    return test


@every_route
def test_greedy_follows_the_forward_pass_and_the_batch_does_not_matter(language, router):
    model = open_model(language, router_type=router)
    batch = prompts(model, MIXED)
    new = model.generate(**batch, **FOUR_TOKENS)[:, -4:]
    for row, sample in zip(new, MIXED, strict=True):
        alone = prompts(model, sample)
        assert torch.equal(model.generate(**alone, **FOUR_TOKENS)[:, -4:], row[None])
        # By hand: the whole prompt again for each token.
        if language == "t5":
            decoder_ids = torch.cat([torch.zeros(1, 1, dtype=torch.long), row[None, :-1]], dim=1)
            with torch.no_grad():
                logits = model(**alone, decoder_input_ids=decoder_ids).logits
        else:
            ids = torch.cat([alone["input_ids"], row[None, :-1]], dim=1)
            rest = {k: v for k, v in alone.items() if k not in ("input_ids", "attention_mask")}
            with torch.no_grad():
                logits = model(input_ids=ids, **rest).logits[:, -4:]
        logits[..., [PLACEHOLDER, model.generation_config.eos_token_id]] = -torch.inf
        assert torch.equal(logits.argmax(-1), row[None])


@every_route
def test_beam_search_in_a_batch_equals_beam_search_alone(language, router):
    model = open_model(language, router_type=router)
    settings = {**FOUR_TOKENS, "num_beams": 3, "num_return_sequences": 2}
    together = model.generate(**prompts(model, MIXED), **settings)[:, -4:]
    for place, sample in enumerate(MIXED):
        alone = model.generate(**prompts(model, sample), **settings)[:, -4:]
        assert torch.equal(together[2 * place : 2 * place + 2], alone)


@pytest.mark.parametrize("language", LANGUAGES)
def test_sampling_is_seeded_and_repeats_images_for_every_sequence(language):
    model = open_model(language, router_type="reliability")
    settings = {"do_sample": True, "max_new_tokens": 4, "num_return_sequences": 3, "temperature": 1.5}
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(model.generate(**prompts(model), **settings))
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    assert runs[0].shape[0] == 6


@pytest.mark.parametrize("language", LANGUAGES)
def test_static_cache(language):
    model = open_model(language, router_type="gate")
    batch = prompts(model)
    settings = {"cache_implementation": "static", "disable_compile": True}
    torch.testing.assert_close(logits_of(model, batch, **settings), logits_of(model, batch), **CLOSE)


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("chunk", [4, 7, 100])
def test_chunked_prefill(router, chunk):
    model = open_model(router_type=router)
    batch = prompts(model)
    torch.testing.assert_close(logits_of(model, batch, prefill_chunk_size=chunk), logits_of(model, batch), **CLOSE)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("beams", [1, 2])
def test_inputs_embeds(language, beams):
    """Embedded text with the placeholder's own embedding where the images go."""
    model = open_model(language, router_type="reliability")
    batch = prompts(model)
    by_ids = model.generate(**batch, **FOUR_TOKENS, num_beams=beams)[:, -4:]
    batch["inputs_embeds"] = model.get_input_embeddings()(batch.pop("input_ids"))
    by_embeddings = model.generate(**batch, **FOUR_TOKENS, num_beams=beams)[:, -4:]
    assert torch.equal(by_ids, by_embeddings)


@pytest.mark.parametrize("language", LANGUAGES)
def test_prompt_lookup_decoding(language):
    model = open_model(language, router_type="gate")
    batch = prompts(model, Sample(question=(7, 8, 9, 7, 8)))
    plain = model.generate(**batch, **FOUR_TOKENS)
    assert torch.equal(model.generate(**batch, **FOUR_TOKENS, prompt_lookup_num_tokens=2), plain)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("router", ROUTERS)
def test_vision_features_take_the_place_of_pixels(language, router):
    model = open_model(language, router_type=router)
    by_pixels = prompts(model)
    by_features = cached_features(model, by_pixels)
    assert torch.equal(logits_of(model, by_features), logits_of(model, by_pixels))
    beams = {**FOUR_TOKENS, "num_beams": 2}
    assert torch.equal(model.generate(**by_features, **beams), model.generate(**by_pixels, **beams))


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("router", ROUTERS)
def test_image_and_tags_reach_the_answer(language, router):
    """Swapping the image, or only its tags, changes what is generated: nothing is dropped on the way."""
    model = open_model(language, router_type=router)
    batch = prompts(model, [Sample(images=(1,)), Sample(images=(2,))])
    plain = logits_of(model, batch)
    for names in (("pixel_values",), ("tag_input_ids", "tag_attention_mask", "tag_scores")):
        swapped = {**batch, **{name: batch[name].flip(0) for name in names}}
        assert not torch.allclose(logits_of(model, swapped), plain, atol=1e-2)
    # Everything swapped, the rows are swapped: each answer follows its own image.
    swapped = {**batch, **{n: batch[n].flip(0) for n in batch if n not in ("input_ids", "attention_mask")}}
    torch.testing.assert_close(logits_of(model, swapped), plain.flip(0), **CLOSE)


@pytest.mark.parametrize("language", LANGUAGES)
def test_images_are_encoded_once(language, monkeypatch):
    """Beams and decoding steps reuse the features: the tower runs once, on every image once."""
    model = open_model(language, router_type="gate")
    seen = []
    model.model.vision_tower.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].shape[0]))
    model.generate(**prompts(model), **FOUR_TOKENS, num_beams=3)
    assert seen == [3]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_placeholder_is_never_an_answer(language):
    model = open_model(language)
    with torch.no_grad():
        output = model.get_output_embeddings()
        output.weight[PLACEHOLDER] = 0
        bias = torch.zeros(VOCABULARY)
        bias[PLACEHOLDER] = 1e4
        output.bias = torch.nn.Parameter(bias)
    for use_cache in (True, False):
        new = model.generate(**prompts(model), **FOUR_TOKENS, use_cache=use_cache)[:, -4:]
        assert (new != PLACEHOLDER).all()


@pytest.mark.parametrize("language", LANGUAGES)
def test_text_alone(language):
    """Without any image the answer is the bare language model's."""
    model = open_model(language, router_type="reliability")
    batch = padded([[1, 7, 8, 9]], 0)
    bare = model.model.language_model  # T5 itself cannot cache more decoder than encoder layers
    bare = bare.generate(**batch, **FOUR_TOKENS, suppress_tokens=[PLACEHOLDER], use_cache=language != "t5")
    assert torch.equal(model.generate(**batch, **FOUR_TOKENS), bare)


@pytest.mark.parametrize("language", LANGUAGES)
def test_generation_settings_are_the_language_models(language):
    model = open_model(language)
    inherited = model.model.language_model.generation_config
    assert model.generation_config.eos_token_id == inherited.eos_token_id
    assert model.generation_config.pad_token_id == inherited.pad_token_id
    assert model.generation_config.decoder_start_token_id == inherited.decoder_start_token_id
    assert model.generation_config.suppress_tokens == [PLACEHOLDER]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_missing_or_a_cut_image_is_one_clear_line(language):
    model = open_model(language)
    batch = prompts(model)
    with pytest.raises(ValueError, match=r"33 placeholder tokens for 22 image and soft-prompt tokens"):
        model.generate(**{k: v[:2] if len(v) == 3 else v for k, v in batch.items()}, **FOUR_TOKENS)
    cut = {**batch, "input_ids": batch["input_ids"][:, -12:], "attention_mask": batch["attention_mask"][:, -12:]}
    with pytest.raises(ValueError, match="do not cut through an image"):
        model.generate(**cut, **FOUR_TOKENS)


def test_tags_of_another_number_of_images_are_one_clear_line():
    model = open_model()
    batch = prompts(model)
    for name in ("tag_input_ids", "tag_attention_mask", "tag_scores"):
        batch[name] = batch[name][:2]
    with pytest.raises(ValueError, match="tag_input_ids has 2 rows for 3 images"):
        model(**batch)


def test_a_second_turn_with_a_new_image_reuses_the_cache():
    """The first turn's cache and the second turn's image give what the whole conversation gives, read at once."""
    model = open_model(router_type="reliability")
    first = prompts(model, Sample(images=(1,)))
    answered = model.generate(**first, **FOUR_TOKENS, return_dict_in_generate=True)
    second = prompts(model, Sample(images=(2,), question=(12, 13)))
    ids = torch.cat([answered.sequences, second["input_ids"]], dim=1)
    both = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    images = {k: v for k, v in second.items() if k not in both}
    everything = {k: torch.cat([first[k], v]) for k, v in images.items()}
    continued = model.generate(**both, **images, past_key_values=answered.past_key_values, **FOUR_TOKENS)
    assert torch.equal(continued, model.generate(**both, **everything, **FOUR_TOKENS))


@pytest.mark.parametrize("router", ROUTERS)
def test_a_second_turn_is_routed_by_itself(router):
    """What is cached is not routed again, and padding of the first turn stays unseen."""
    model = open_model(router_type=router)
    rows = {}
    for padding in (0, 3):
        first = prompts(model, Sample(images=(1,)))
        for name in ("input_ids", "attention_mask"):
            first[name] = torch.nn.functional.pad(first[name], (padding, 0))
        answered = model.generate(**first, **FOUR_TOKENS, return_dict_in_generate=True)
        second = prompts(model, Sample(images=(2,), question=(12, 13)))
        ids = torch.cat([answered.sequences, second["input_ids"]], dim=1)
        mask = torch.ones_like(ids)
        mask[:, :padding] = 0
        second.update(input_ids=ids, attention_mask=mask, past_key_values=answered.past_key_values)
        rows[padding] = model.generate(**second, **FOUR_TOKENS)[:, -4:]
    assert torch.equal(rows[0], rows[3])


@pytest.mark.parametrize("router", ["gate", "reliability"])
def test_assisted_by_a_language_model_without_eyes(router):
    """The assistant reads text alone; what it proposes wrongly the model itself mends."""
    model = open_model(router_type=router)
    batch = prompts(model, Sample())
    assistant = LlamaForCausalLM(text_config("llama")).eval()
    plain = model.generate(**batch, **FOUR_TOKENS)
    assert torch.equal(model.generate(**batch, **FOUR_TOKENS, assistant_model=assistant), plain)


@pytest.mark.slow
def test_continuous_batching_of_text():
    """transformers' continuous batching serves text alone so far: two prompts in one batch, each as by itself."""
    model = open_model(router_type="reliability")
    texts = [[1, 7, 8, 9, 10], [1, 11, 12]]
    settings = GenerationConfig(max_new_tokens=3, do_sample=False, eos_token_id=-1, pad_token_id=0)
    settings.suppress_tokens = [PLACEHOLDER]
    answers = model.generate_batch(inputs=texts, generation_config=settings, progress_bar=False)
    found = [answer.generated_tokens for answer in answers.values()]
    expected = [
        model.generate(torch.tensor([ids]), generation_config=settings)[0, len(ids) :].tolist() for ids in texts
    ]
    assert sorted(found) == sorted(expected)


def test_continuous_batching_refuses_images():
    """In its thread nobody would hear that an image is missing: the caller would wait for ever."""
    model = open_model()
    with pytest.raises(ValueError, match=r"inputs\[1\] holds an image.*use generate"):
        model.generate_batch(inputs=[[1, 7, 8], prompts(model, Sample())["input_ids"][0].tolist()])
