import pytest
import torch
from PIL import Image
from tokenizers import processors
from torch.utils.data import DataLoader

from poise.processing.batching.batch_description import describe_batch
from poise.processing.batching.collators import GenerationCollator, TrainingCollator, _gap
from poise.processing.chat_templates import choose_chat_template
from poise.processing.processing_poise import QUESTION_INPUTS
from poise.processing.prompts import Prompts

from ..conftest import make_processor, word_tokenizer

PHOTO = Image.new("RGB", (80, 60), "red")
PHOTO.paste("blue", (40, 0, 80, 60))
VQA = {
    "id": "a",
    "image": PHOTO,
    "task": "vqa",
    "question": "what color is the dog ?",
    "answers": ["red"],
    "tags": [["dog", 0.9], ["ball", 0.6]],
}
CAPTION = {"id": "b", "image": PHOTO, "task": "caption", "captions": ["a blue dog"], "tags": []}
GROUNDING = {"id": "c", "image": PHOTO, "task": "grounding", "question": "the dog", "bbox": [0, 0, 40, 30]}
TEXT_ONLY = {"id": "d", "image": None, "task": "vqa", "question": "is the ball red ?", "answers": ["yes"]}
RECORDS = [VQA, CAPTION, GROUNDING, TEXT_ONLY]
PROMPTS = Prompts(caption="describe the image", grounding="give box of {expression}")


def said(processor, ids):
    """A row in words, without padding and with runs of placeholders shortened."""
    words = [w for w in processor.tokenizer.convert_ids_to_tokens(ids.tolist()) if w != "<pad>"]
    return " ".join(words).replace(" ".join(["<image>"] * 6), "<image>×6")


def supervised(batch, processor):
    return [said(processor, row[row != -100]) for row in batch["labels"]]


EXPECTED_PROMPTS = [
    "<image>×6 tags : dog , ball . question : what color is the dog ? answer :",
    "<image>×6 question : describe the image answer :",
    "<image>×6 question : give box of the dog answer :",
    "question : is the ball red ? answer :",
]
EXPECTED_ANSWERS = ["red </s>", "a blue dog </s>", "[ 0 , 0 , 5 0 0 , 5 0 0 ] </s>", "yes </s>"]


def test_training_of_a_decoder_only_model(processor):
    batch = TrainingCollator(processor, prompts=PROMPTS)(RECORDS)
    assert supervised(batch, processor) == EXPECTED_ANSWERS
    rows = [f"{prompt} {answer}" for prompt, answer in zip(EXPECTED_PROMPTS, EXPECTED_ANSWERS, strict=True)]
    assert [said(processor, row) for row in batch["input_ids"]] == rows
    mask, labels, ids = batch["attention_mask"].bool(), batch["labels"], batch["input_ids"]
    assert torch.equal(ids[labels != -100], labels[labels != -100])
    # Right-padded: attended, then padding.
    assert (mask[:, :-1] | ~mask[:, 1:]).all() and mask[:, 0].all()
    assert ids.shape == labels.shape == mask.shape
    assert batch["pixel_values"].shape == (3, 3, 48, 48)
    assert batch["tag_attention_mask"].sum(dim=1).tolist() == [5, 0, 0]


def test_only_the_models_inputs_unless_asked(processor):
    batch = TrainingCollator(processor)(RECORDS)
    assert set(batch) == {*processor.model_input_names, "labels"}
    assert set(TrainingCollator(processor)([TEXT_ONLY, TEXT_ONLY])) == {"input_ids", "attention_mask", "labels"}
    assert set(TrainingCollator(processor)([CAPTION])) == {
        "input_ids",
        "attention_mask",
        "labels",
        "pixel_values",
        *QUESTION_INPUTS,
    }


def test_training_of_an_encoder_decoder():
    processor = make_processor(tokenizer=word_tokenizer(encoder_decoder=True))
    collate = TrainingCollator(processor, is_encoder_decoder=True, prompts=PROMPTS)
    batch = collate(RECORDS)
    assert supervised(batch, processor) == EXPECTED_ANSWERS
    assert [said(processor, row) for row in batch["input_ids"]] == [f"{prompt} </s>" for prompt in EXPECTED_PROMPTS]
    assert batch["labels"].shape[1] < batch["input_ids"].shape[1]
    assert (batch["labels"][:, 0] != -100).all()


def test_generation_pads_on_the_left_and_hands_the_records_on(processor):
    inputs, records = GenerationCollator(processor, prompts=PROMPTS)(RECORDS)
    assert set(inputs) == set(processor.model_input_names) and records == RECORDS
    assert [said(processor, row) for row in inputs["input_ids"]] == EXPECTED_PROMPTS
    assert inputs["attention_mask"][:, -1].all() and not inputs["attention_mask"][3, 0]
    encoder_decoder = make_processor(tokenizer=word_tokenizer(encoder_decoder=True))
    inputs, _ = GenerationCollator(encoder_decoder, is_encoder_decoder=True, prompts=PROMPTS)(RECORDS)
    assert inputs["attention_mask"][:, 0].all() and not inputs["attention_mask"][3, -1]


def test_training_and_generation_see_the_same_prompt(processor):
    trained = TrainingCollator(processor)(RECORDS)
    generated, _ = GenerationCollator(processor)(RECORDS)
    for index in range(len(RECORDS)):
        is_prompt = trained["attention_mask"][index].bool() & (trained["labels"][index] == -100)
        prompt = trained["input_ids"][index][is_prompt]
        assert torch.equal(prompt, generated["input_ids"][index][generated["attention_mask"][index].bool()])


def test_long_prompts_lose_their_oldest_text_first(processor):
    (row,) = TrainingCollator(processor, max_length=17)([VQA])["input_ids"]
    assert said(processor, row) == "<image>×6 : what color is the dog ? answer : red </s>"
    inputs, _ = GenerationCollator(processor, max_length=9)([VQA])
    assert said(processor, inputs["input_ids"][0]) == "<image>×6 ? answer :"


def test_answers_are_cut_only_when_no_text_of_the_prompt_is_left(processor):
    batch = TrainingCollator(processor, max_length=9)([GROUNDING, VQA])
    assert supervised(batch, processor) == ["[ 0 ,", "red </s>"]
    assert said(processor, batch["input_ids"][0]) == "<image>×6 [ 0 ,"
    with pytest.raises(ValueError, match="max_length=6 leaves no room for an answer beside the 6 image placeholders"):
        TrainingCollator(processor, max_length=6)([VQA])


@pytest.mark.parametrize("is_encoder_decoder", [False, True])
@pytest.mark.parametrize("max_length", [*range(8, 30, 3), 60])
def test_placeholders_survive_every_length(max_length, is_encoder_decoder):
    processor = make_processor(tokenizer=word_tokenizer(encoder_decoder=is_encoder_decoder))
    batch = TrainingCollator(processor, max_length, is_encoder_decoder)(RECORDS)
    counts = (batch["input_ids"] == processor.image_token_id).sum(dim=1).tolist()
    assert counts == [6, 6, 6, 0]
    assert batch["input_ids"].shape[1] <= max_length
    assert (batch["labels"] != -100).any(dim=1).all()


def test_another_epoch_draws_other_captions(processor):
    records = [{**CAPTION, "id": number, "captions": ["a dog", "a cat", "a ball"]} for number in range(20)]
    collate = TrainingCollator(processor, seed=3)
    first, again = collate(records)["labels"], collate(records)["labels"]
    collate.epoch = 1
    assert torch.equal(first, again) and not torch.equal(first, collate(records)["labels"])


def test_the_answer_is_tokenized_as_the_template_writes_it():
    # An instruct model's template ends the prompt with a line break and the answer with its own mark.
    tokenizer = word_tokenizer(eos_token="<|im_end|>")
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>", "user", "assistant"])
    processor = make_processor(tokenizer=tokenizer, chat_template=choose_chat_template(tokenizer))
    batch = TrainingCollator(processor)([VQA])
    assert supervised(batch, processor) == ["red <|im_end|>"]
    assert said(processor, batch["input_ids"][0]).endswith("<|im_start|> assistant red <|im_end|>")


def test_padding_to_a_multiple(processor):
    batch = TrainingCollator(processor, pad_to_multiple_of=16)(RECORDS)
    assert batch["input_ids"].shape[1] % 16 == batch["labels"].shape[1] % 16 == 0


def test_worker_processes(processor):
    loader = DataLoader(RECORDS * 2, batch_size=4, collate_fn=TrainingCollator(processor), num_workers=1)
    assert [len(batch["labels"]) for batch in loader] == [4, 4]


def test_a_tokenizer_without_an_end(processor):
    with pytest.raises(ValueError, match="has no eos_token"):
        TrainingCollator(make_processor(tokenizer=word_tokenizer(eos_token=None)))


def test_a_batch_in_words(processor):
    batch = TrainingCollator(processor, prompts=PROMPTS)(RECORDS)
    assert describe_batch(batch, processor) == (
        "4 samples, 3 images of 48×48, 18 placeholders (4 image + 2 soft-prompt tokens an image), 2 tags on 1 image, "
        "41 other prompt tokens, 22 supervised tokens."
    )
    inputs, _ = GenerationCollator(processor)([TEXT_ONLY])
    assert describe_batch(inputs, processor) == (
        "1 sample, no images, 0 placeholders (4 image + 2 soft-prompt tokens an image), no tags for the tag encoder, "
        "9 other prompt tokens."
    )


def test_what_is_missing_is_said(processor):
    batch = TrainingCollator(processor)([{**VQA, "image": Image.new("RGB", (9, 9))}, TEXT_ONLY])
    batch["labels"][1] = -100
    batch["input_ids"][0, 0] = processor.tokenizer.pad_token_id
    text = describe_batch(batch, processor)
    assert "1 image of 48×48 (1 of one colour only)" in text
    assert "5 placeholders" in text and "but the images need 6" in text
    assert "1 of the samples without any supervised token" in text


def test_a_record_that_comes_again_within_an_epoch_draws_for_its_own_pass(processor):
    """Passes draw as epochs do, and where a record counts them the epoch does not."""
    records = [{**CAPTION, "id": number, "captions": ["a dog", "a cat", "a ball"]} for number in range(20)]
    collate, later = TrainingCollator(processor, seed=3), TrainingCollator(processor, seed=3)
    later.epoch = 1
    second = [{**record, "pass": 1} for record in records]
    assert torch.equal(collate(second)["labels"], later(records)["labels"])
    assert torch.equal(collate(second)["labels"], later(second)["labels"])
    assert not torch.equal(collate(second)["labels"], collate(records)["labels"])


@pytest.mark.parametrize("template_writes_it", [True, False])
def test_there_is_one_first_token_whoever_writes_it(template_writes_it):
    tokenizer = word_tokenizer(bos_token="<s>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 2)]
    )
    template = choose_chat_template(tokenizer, name="question_answer")
    if template_writes_it:
        template = "{{ bos_token }} " + template
    processor = make_processor(tokenizer=tokenizer, chat_template=template)
    batch = TrainingCollator(processor)([VQA, TEXT_ONLY])
    assert (batch["input_ids"] == 2).sum(1).tolist() == [1, 1] and (batch["input_ids"][:, 0] == 2).all()


@pytest.mark.parametrize(
    ("prompt", "whole", "answer", "gap"),
    [
        ("question : what ? answer :", "question : what ? answer : red</s>", "red", " "),
        ("what ?\n", "what ?\nred", "red", ""),
        ("what ?", "what ?<think></think>\n\nred", "red", "<think></think>\n\n"),
        ("what ?<generate>", "what ? red", "red", " "),  # the template ends a prompt otherwise
        ("what ?<generate>\n", "what ? red", "red", ""),
        ("what ?", "what ? green", "red", " "),
    ],
)
def test_what_stands_between_a_prompt_and_its_answer(prompt, whole, answer, gap):
    assert _gap(prompt, whole, answer) == gap
