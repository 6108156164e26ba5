"""The processor under transformers' pipeline, with a tiny random model behind it."""

import pytest
import torch
from transformers import BertConfig, LlamaConfig, SiglipVisionConfig, T5Config, pipeline

from poise.modeling.configuration_poise import PoiseConfig
from poise.modeling.modeling_poise import PoiseForConditionalGeneration
from poise.processing.batching.collators import GenerationCollator, TrainingCollator

from .conftest import make_processor, piece_tokenizer, word_tokenizer

TAGS = [("dog", 0.97), ("ball", 0.6)]


def tiny_model(processor, encoder_decoder):
    vocabulary = len(processor.tokenizer)
    common = {"vocab_size": vocabulary, "pad_token_id": 0, "eos_token_id": 3}
    if encoder_decoder:
        text_config = T5Config(
            d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0, **common
        )
    else:
        text_config = LlamaConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, bos_token_id=2, **common
        )
    config = PoiseConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=48,
            patch_size=24,
        ),
        tag_encoder_config=BertConfig(
            vocab_size=len(processor.tag_tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
        ),
        text_config=text_config,
        image_token_id=processor.image_token_id,
        soft_prompt_length=2,
        router_type="gate",
    )
    assert (config.num_image_tokens, config.num_prompt_tokens) == (4, 2)
    torch.manual_seed(0)
    model = PoiseForConditionalGeneration(config).eval()
    # Random weights would say little else.
    model.generation_config.suppress_tokens = [0, 1, 2, 3, processor.image_token_id]
    return model


@pytest.fixture(scope="module", params=[False, True], ids=["decoder-only", "encoder-decoder"])
def parts(request):
    tokenizer = word_tokenizer(encoder_decoder=request.param, padding_side="right" if request.param else "left")
    processor = make_processor(tokenizer=tokenizer, tag_tokenizer=piece_tokenizer())
    return tiny_model(processor, request.param), processor, request.param


@pytest.fixture(scope="module")
def answerer(parts):
    model, processor, _ = parts
    return pipeline("image-text-to-text", model=model, processor=processor)


def chat(photo, question, **entry):
    return [
        {
            "role": "user",
            "content": [{"type": "image", "image": photo, **entry}, {"type": "text", "text": question}],
        }
    ]


def texts(outputs):
    return [output["generated_text"] for output in outputs]


OPTIONS = {"return_full_text": False, "generate_kwargs": {"max_new_tokens": 3, "do_sample": False}}


def test_chat_plain_text_and_batch_agree(answerer, photo):
    words = "<image> question : {} answer :"
    questions = ["what is the color ?", "is the dog red or blue or green ?"]
    by_chat = [texts(answerer(chat(photo, question, tags=TAGS), **OPTIONS))[0] for question in questions]
    by_text = [
        texts(answerer(images=photo, text=words.format(question), tags=TAGS, **OPTIONS))[0] for question in questions
    ]
    by_batch = texts(
        answerer(images=[photo, photo], text=[words.format(q) for q in questions], tags=[TAGS, TAGS], **OPTIONS)
    )
    assert by_chat == by_text == by_batch
    chats = answerer(text=[chat(photo, question, tags=TAGS) for question in questions], **OPTIONS)
    assert [texts(outputs)[0] for outputs in chats] == by_chat
    assert all(by_chat)


def test_batches_of_chats_with_tag_lines_of_other_lengths(answerer, photo):
    chats = [chat(photo, "what ?", tags=TAGS), chat(photo, "is the dog red ?", tags=[("cat", 0.4)])]
    one_by_one = [texts(answerer(single, **OPTIONS))[0] for single in chats]
    together = answerer(text=chats, batch_size=2, **OPTIONS)
    assert [texts(outputs)[0] for outputs in together] == one_by_one


def test_without_tags_and_full_text(answerer, photo):
    assert texts(answerer(chat(photo, "what ?"), **OPTIONS))[0]
    full = answerer(chat(photo, "what ?", tags=TAGS), generate_kwargs=OPTIONS["generate_kwargs"])
    assert full[0]["generated_text"][-1]["role"] == "assistant"
    assert answerer("question : what ? answer :", **OPTIONS)  # text alone


def test_images_and_tags_reach_the_model(parts, photo):
    model, processor, _ = parts
    inputs = processor(images=photo, text="<image> question : what ? answer :", tags=TAGS, return_tensors="pt")
    assert set(inputs) == set(processor.model_input_names)
    labels = torch.full((1, 2), 5) if parts[2] else inputs["input_ids"]
    with torch.no_grad():
        plain = model(**inputs, labels=labels).logits
        other_image = model(**{**inputs, "pixel_values": -inputs["pixel_values"]}, labels=labels).logits
        other_tags = model(**{**inputs, "tag_scores": 1 - inputs["tag_scores"]}, labels=labels).logits
    assert not torch.allclose(plain, other_image) and not torch.allclose(plain, other_tags)


def test_collated_batches_run_through_the_model(parts, photo):
    model, processor, encoder_decoder = parts
    vqa = {"id": "a", "image": photo, "task": "vqa", "question": "what ?", "answers": ["dog"], "tags": TAGS}
    caption = {"id": "b", "image": photo, "task": "caption", "captions": ["a red dog"]}
    text_only = {"id": "c", "image": None, "task": "vqa", "question": "is the ball red ?", "answers": ["yes"]}
    train = TrainingCollator(processor, is_encoder_decoder=encoder_decoder)
    with torch.no_grad():
        for records in ([vqa, caption, text_only], [text_only], [caption]):
            assert model(**train(records)).loss.isfinite()
        inputs, records = GenerationCollator(processor, is_encoder_decoder=encoder_decoder)([vqa, caption, text_only])
        together = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        for index, record in enumerate(records):
            alone, _ = GenerationCollator(processor, is_encoder_decoder=encoder_decoder)([record])
            single = model.generate(**alone, max_new_tokens=3, do_sample=False)
            start = 0 if encoder_decoder else alone["input_ids"].shape[1]
            offset = 0 if encoder_decoder else inputs["input_ids"].shape[1]
            new = together[index][offset:]
            assert new[: single.shape[1] - start].tolist() == single[0][start:].tolist()


def test_wrong_counts_reach_the_user_as_one_line(answerer, photo):
    with pytest.raises(ValueError, match="text holds 0 <image> placeholders for 1 images"):
        answerer(images=photo, text="what ?", **OPTIONS)
