"""Which tokens are a modality's own, and what takes their place."""

import pytest
import torch
from small_vlms import KINDS, QUESTIONS, object_records, small_vlm

from poise.evaluation.probing.mean_tokens import mean_tokens
from poise.evaluation.probing.prompt_reading import read_prompts

pytestmark = pytest.mark.numerics


@pytest.mark.parametrize("kind", KINDS)
def test_question_words_are_the_questions_own(kind):
    vlm = small_vlm(kind)
    prompts = vlm.prompts(3)
    decode = vlm.processor.tokenizer.decode
    words = [decode(ids[own]) for ids, own in zip(prompts.input_ids, prompts.question_words, strict=True)]
    assert words == list(QUESTIONS)


def changed_places(prompts, changes):
    """Places (B, T) of what the text stack reads otherwise."""
    read = []

    def keep(module, args, kwargs):
        read.append((args[0] if args else kwargs["hidden_states"]).detach())

    handle = prompts.parts.layers[0].register_forward_pre_hook(keep, with_kwargs=True)
    more = {"decoder_input_ids": torch.tensor([[0]] * len(prompts))} if prompts.parts.is_encoder_decoder else {}
    with torch.no_grad():
        for some in ((), changes):
            prompts.logits(some, **more)
    handle.remove()
    return (read[0] != read[1]).any(-1), read[1]


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_is_absent_changes_and_becomes_the_mean(kind):
    vlm, records = small_vlm(kind), object_records(3)
    means = mean_tokens(vlm.model, vlm.processor, records, batch_size=2, progress=False)
    assert means.images == 3
    prompts = vlm.prompts()
    nothing = torch.zeros_like(prompts.image)
    soft_prompt = nothing if prompts.soft_prompt is None else prompts.soft_prompt
    tag_words = nothing if prompts.tag_words is None else prompts.tag_words
    assert kind == "llava" or tag_words.any()  # the prompt names them in words, too
    for absent in ((), ("image",), ("tags",), ("question",), ("image", "question")):
        differs, read = changed_places(prompts, means.without(prompts, absent))
        mine = nothing.clone()
        if "image" in absent:
            mine |= prompts.image
            torch.testing.assert_close(read[prompts.image], means.image.expand(int(prompts.image.sum()), -1))
        if "tags" in absent:
            mine |= soft_prompt | tag_words
            if tag_words.any():
                torch.testing.assert_close(read[tag_words], means.tag_words.expand(int(tag_words.sum()), -1))
            for row in range(len(prompts) if soft_prompt.any() else 0):
                torch.testing.assert_close(read[row, soft_prompt[row]], means.soft_prompt)
        if "question" in absent:
            mine |= prompts.question_words
            assert torch.equal(read[prompts.question_words].unique(dim=0), means.question[None])
        assert torch.equal(differs, differs & mine)
        assert not absent or (kind == "llava" and absent == ("tags",)) or differs.any()


def test_means_are_means():
    vlm, records = small_vlm("llama"), object_records(3)
    means = mean_tokens(vlm.model, vlm.processor, records, batch_size=2, progress=False)
    images, slots, tags, questions = [], [], [], []
    for record in records:
        prompts = read_prompts(vlm.parts, vlm.processor, [record["image"]], [record["question"]], [record["tags"]])
        images.append(prompts.image_rows(prompts.image))
        slots.append(prompts.image_rows(prompts.soft_prompt))
        words = vlm.model.get_input_embeddings()(prompts.input_ids)
        tags.append(words[prompts.tag_words]), questions.append(words[prompts.question_words])
    torch.testing.assert_close(means.image, torch.cat(images).mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(means.soft_prompt, torch.stack(slots).mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(means.tag_words, torch.cat(tags).mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(means.question, torch.cat(questions).mean(0), rtol=1e-4, atol=1e-5)


def test_no_image_is_an_error():
    vlm = small_vlm("llama")
    with pytest.raises(ValueError, match="records holds no image to take mean tokens of"):
        mean_tokens(vlm.model, vlm.processor, [{**object_records(1)[0], "image": None}], progress=False)
