"""Which tokens are a modality's own, and what takes their place."""

import pytest
import torch
from small_vlms import KINDS, QUESTIONS, object_records, small_vlm

from poise.evaluation.probing.mean_tokens import mean_tokens
from poise.evaluation.probing.visual_prompts import read_prompts

pytestmark = pytest.mark.numerics


def words_at(vlm, prompts, questions, chosen):
    """The prompts' words at `chosen` (B, T), found by the tokens whose embeddings stand there."""
    table = vlm.model.get_input_embeddings().weight
    found = []
    for row in range(len(prompts)):
        ids = [int((table - embedding).norm(dim=-1).argmin()) for embedding in prompts.embeddings[row][chosen[row]]]
        found.append(vlm.processor.tokenizer.decode(ids))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_question_words_are_the_questions_own(kind):
    vlm = small_vlm(kind)
    prompts = vlm.prompts(3)
    assert words_at(vlm, prompts, QUESTIONS, prompts.question_words) == list(QUESTIONS)


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_is_absent_changes_and_becomes_the_mean(kind):
    vlm, records = small_vlm(kind), object_records(3)
    means = mean_tokens(vlm.model, vlm.processor, records, batch_size=2, progress=False)
    assert means.pictures == 3
    prompts = vlm.prompts()
    for absent in ((), ("image",), ("tags",), ("question",), ("image", "question")):
        changed = means.without(prompts, absent)
        differs = (changed != prompts.embeddings).any(-1)  # (B, T)
        mine = torch.zeros_like(differs)
        if "image" in absent:
            mine.scatter_(1, prompts.image_places, True)
        if "tags" in absent:
            mine.scatter_(1, prompts.prompt_places, True)
            mine |= prompts.tag_words
        if "question" in absent:
            mine |= prompts.question_words
        assert not (differs & ~mine).any()
        assert not absent or kind == "llava" or differs.any()
        if "image" in absent:
            torch.testing.assert_close(
                changed[0, prompts.image_places[0]], means.image.expand(len(prompts.image_places[0]), -1)
            )
        if "tags" in absent:
            assert kind == "llava" or prompts.tag_words.any()  # the prompt names them in words, too
            torch.testing.assert_close(
                changed[prompts.tag_words], means.tag_words.expand(int(prompts.tag_words.sum()), -1)
            )
            for row, places in enumerate(prompts.prompt_places):
                torch.testing.assert_close(changed[row, places], means.soft_prompt)
        if "question" in absent:
            assert torch.equal(changed[prompts.question_words].unique(dim=0), means.question[None])


def test_means_are_means():
    vlm, records = small_vlm("llama"), object_records(3)
    means = mean_tokens(vlm.model, vlm.processor, records, batch_size=2, progress=False)
    images, slots = [], []
    for record in records:
        prompts = read_prompts(vlm.parts, vlm.processor, [record["image"]], [record["question"]], [record["tags"]])
        images.append(prompts.image_tokens()[0])
        slots.append(prompts.embeddings[0, prompts.prompt_places[0]])
    torch.testing.assert_close(means.image, torch.cat(images).mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(means.soft_prompt, torch.stack(slots).mean(0), rtol=1e-4, atol=1e-5)


def test_no_picture_is_an_error():
    vlm = small_vlm("llama")
    with pytest.raises(ValueError, match="records holds no picture to take mean tokens of"):
        mean_tokens(vlm.model, vlm.processor, [{**object_records(1)[0], "image": None}], progress=False)
