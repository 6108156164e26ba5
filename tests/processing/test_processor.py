import inspect

import numpy as np
import pytest
import torch
from PIL import Image

from poise.processing.processing_poise import PoiseProcessor

from .conftest import NUM_IMAGE_TOKENS, NUM_PROMPT_TOKENS, make_processor, piece_tokenizer, word_tokenizer

PLACEHOLDERS = NUM_IMAGE_TOKENS + NUM_PROMPT_TOKENS
TAGS = [("ball", 0.6), ("dog", 0.97)]


def spoken(processor, row):
    """A row of ids as text, with each run of placeholders as <image>×n."""
    words, count = [], 0
    for token in row.tolist() + [None]:
        if token == processor.image_token_id:
            count += 1
            continue
        if count:
            words.append(f"<image>×{count}")
            count = 0
        if token is not None and token != processor.tokenizer.pad_token_id:
            words.append(processor.tokenizer.convert_ids_to_tokens(token))
    return " ".join(words)


def test_one_sample(processor, photo):
    batch = processor(images=photo, text="<image> what is the color ?", tags=[TAGS], return_tensors="pt")
    assert spoken(processor, batch["input_ids"][0]) == "<image>×6 tags : dog , ball . what is the color ?"
    assert batch["pixel_values"].shape == (1, 3, 48, 48) and batch["pixel_values"].dtype == torch.float32
    assert batch["attention_mask"].tolist() == [[1] * batch["input_ids"].shape[1]]
    pieces = processor.tag_tokenizer.convert_ids_to_tokens(batch["tag_input_ids"][0].tolist())
    assert pieces == "[CLS] dog , ball [SEP]".split()
    assert batch["tag_scores"].dtype == torch.float32
    torch.testing.assert_close(batch["tag_scores"][0], torch.tensor([0.785, 0.97, 0.785, 0.6, 0.785]))
    assert set(batch) == set(processor.model_input_names)


def test_a_batch_of_all_kinds(processor, photo):
    texts = ["<image> what ?", "what ?", "the <image> <image> what ?"]
    batch = processor(
        images=[[photo], [], [photo, photo]],
        text=texts,
        tags=[[("dog", 0.5)], None, TAGS],
        return_tensors="pt",
        padding=True,
    )
    assert [spoken(processor, row) for row in batch["input_ids"]] == [
        "<image>×6 tags : dog . what ?",
        "what ?",
        "the <image>×6 <image>×6 tags : dog , ball . what ?".replace("<image>×6 <image>×6", "<image>×12"),
    ]
    assert batch["pixel_values"].shape[0] == 3
    assert batch["tag_attention_mask"].sum(dim=1).tolist() == [3, 0, 5]
    assert batch["attention_mask"].sum(dim=1).tolist() == [6 + 6, 2, 1 + 12 + 6 + 2]


def test_text_alone_and_images_alone(processor, photo):
    assert set(processor(text="what ?", return_tensors="pt")) == {"input_ids", "attention_mask"}
    assert set(processor(text=["what ?", "the dog"])) == {"input_ids", "attention_mask"}
    assert set(processor(images=[photo], return_tensors="pt")) == {"pixel_values"}


def test_without_return_tensors_everything_is_a_list(processor, photo):
    batch = processor(images=photo, text="<image> what ?", tags=TAGS)
    assert isinstance(batch["input_ids"], list) and isinstance(batch["tag_scores"], list)


def test_numpy_tensors_arrays_and_files(processor, photo, tmp_path):
    photo.save(tmp_path / "photo.png")
    arrays = np.asarray(photo)
    sources = [photo, tmp_path / "photo.png", str(tmp_path / "photo.png"), arrays]
    batch = processor(images=sources, return_tensors="np")
    for pixels in batch["pixel_values"]:
        np.testing.assert_array_equal(pixels, batch["pixel_values"][0])


def test_words_never_run_into_the_text_behind_them(processor, photo):
    for text in ("<image>what ?", "<image> what ?", "<image>\nwhat ?"):
        batch = processor(images=photo, text=text, tags=[("dog", 0.5)], return_tensors="pt")
        assert spoken(processor, batch["input_ids"][0]) == "<image>×6 tags : dog . what ?"
    batch = processor(images=photo, text="what ? <image>", tags=[("dog", 0.5)], return_tensors="pt")
    assert spoken(processor, batch["input_ids"][0]) == "what ? <image>×6 tags : dog ."


def test_tag_words_off_leaves_the_text_alone(photo):
    processor = make_processor(tag_words=False)
    batch = processor(images=photo, text="<image> what ?", tags=TAGS, return_tensors="pt")
    assert spoken(processor, batch["input_ids"][0]) == "<image>×6 what ?"
    assert batch["tag_attention_mask"].sum() == 5


def test_without_a_tag_tokenizer_tags_are_words_or_nothing(photo, caplog):
    processor = make_processor(tag_tokenizer=None)
    batch = processor(images=photo, text="<image> what ?", tags=TAGS, return_tensors="pt")
    assert spoken(processor, batch["input_ids"][0]) == "<image>×6 tags : dog , ball . what ?"
    assert set(batch) == {"input_ids", "attention_mask", "pixel_values"} == set(processor.model_input_names)
    processor = make_processor(tag_tokenizer=None, tag_words=False)
    batch = processor(images=photo, text="<image> what ?", tags=TAGS, return_tensors="pt")
    assert spoken(processor, batch["input_ids"][0]) == "<image>×6 what ?"


@pytest.mark.parametrize(("encoding", "pieces"), [("text", 16), ("embedding", 5), ("attention_bias", 5)])
def test_score_encodings(photo, encoding, pieces):
    processor = make_processor(tag_score_encoding=encoding)
    batch = processor(images=photo, tags=[("dog", 0.97), ("ball", 0.61)], return_tensors="pt")
    said = processor.tag_tokenizer.decode(batch["tag_input_ids"][0], skip_special_tokens=True)
    assert ("9" in said) == (encoding == "text")
    assert batch["tag_scores"].unique().numel() == 3
    assert batch["tag_input_ids"].shape[1] == (13 if encoding == "text" else pieces)


def test_five_thousand_tags(photo, monkeypatch):
    said = []
    monkeypatch.setattr("poise.processing.processing_poise.logger.warning_once", said.append)
    processor = make_processor(max_tags=3)
    tags = [(f"dog {number}", number / 5000) for number in range(5000)]
    batch = processor(images=photo, text="<image> what ?", tags=[tags], return_tensors="pt")
    assert spoken(processor, batch["input_ids"][0]) == (
        "<image>×6 tags : dog 4 9 9 9 , dog 4 9 9 8 , dog 4 9 9 7 . what ?"
    )
    processor(images=photo, text="<image> what ?", tags=[tags[:10]], return_tensors="pt")
    # warning_once drops what it has said before, so the words must not depend on the image.
    assert len(set(said)) == 1 and "max_tags=3" in said[0] and "said once" in said[0]


def test_images_and_placeholders_must_agree(processor, photo):
    with pytest.raises(ValueError, match="text holds 2 <image> placeholders for 1 images: write one <image>"):
        processor(images=photo, text="<image> <image> what ?")
    with pytest.raises(ValueError, match="text holds 0 <image> placeholders for 1 images"):
        processor(images=photo, text="what ?")
    with pytest.raises(ValueError, match="text holds 1 <image> placeholders for 0 images"):
        processor(text="<image> what ?")
    with pytest.raises(ValueError, match="tags holds 2 lists for 1 images"):
        processor(images=photo, text="<image> what ?", tags=[TAGS, TAGS])
    with pytest.raises(ValueError, match="images and text are both None"):
        processor()
    with pytest.raises(ValueError, match="videos and audio"):
        processor(text="what ?", audio=[0.0])
    with pytest.raises(ValueError, match="must be a string or a list of strings"):
        processor(text=[["what"]])


def test_a_tag_cannot_smuggle_in_special_tokens(processor, photo):
    with pytest.raises(ValueError, match=r"tags\[0\] names 'dog <image>', which holds the special token"):
        processor(images=photo, text="<image> what ?", tags=[("dog <image>", 0.5)])


def test_truncation_cuts_text_and_keeps_placeholders_and_special_tokens(photo):
    processor = make_processor(tokenizer=word_tokenizer(encoder_decoder=True))
    texts = ["the dog <image> what is the color ?", "what ?"]
    batch = processor(images=photo, text=texts, truncation=True, max_length=9, padding=True, return_tensors="pt")
    assert spoken(processor, batch["input_ids"][0]) == "the dog <image>×6 </s>"
    assert batch["input_ids"].shape == (2, 9) and batch["attention_mask"].sum(dim=1).tolist() == [9, 3]
    processor.tokenizer.truncation_side = "left"
    batch = processor(images=photo, text=texts[:1], truncation=True, max_length=9, return_tensors="pt")
    assert spoken(processor, batch["input_ids"][0]) == "<image>×6 color ? </s>"


def test_truncation_to_the_tokenizers_own_limit(photo):
    processor = make_processor(tokenizer=word_tokenizer(model_max_length=8))
    batch = processor(images=photo, text="<image> what is the color ?", truncation=True, return_tensors="pt")
    assert spoken(processor, batch["input_ids"][0]) == "<image>×6 what is"


def test_placeholders_that_do_not_fit(processor, photo):
    with pytest.raises(ValueError, match="max_length=5 is less than the 6 image placeholders.*never cut"):
        processor(images=photo, text="<image> what ?", truncation=True, max_length=5)


def test_padding_to_a_length_with_truncation(processor, photo):
    batch = processor(
        images=photo,
        text=["the <image> dog", "what"],
        truncation=True,
        padding="max_length",
        max_length=12,
        padding_side="left",
        return_tensors="pt",
    )
    assert batch["attention_mask"].tolist() == [[0] * 4 + [1] * 8, [0] * 11 + [1]]


def test_unknown_words_are_text_for_truncation(processor):
    batch = processor(text="unheard what unheard", truncation=True, max_length=2, return_tensors="pt")
    assert spoken(processor, batch["input_ids"][0]) == "<unk> what"


def test_chat_with_tags_on_the_image(processor, photo):
    chat = [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": photo, "tags": TAGS},
                {"type": "text", "text": "what is the color ?"},
            ],
        }
    ]
    arguments = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    one = processor.apply_chat_template(chat, **arguments)
    assert spoken(processor, one["input_ids"][0]) == (
        "<image>×6 tags : dog , ball . question : what is the color ? answer :"
    )
    plain = processor(
        images=photo, text="<image> question : what is the color ? answer :", tags=[TAGS], return_tensors="pt"
    )
    for name in processor.model_input_names:
        torch.testing.assert_close(one[name], plain[name])

    text_chat = [{"role": "user", "content": [{"type": "text", "text": "what ?"}]}]
    string_chat = [{"role": "user", "content": "what ?"}]
    chats = [text_chat, chat, string_chat]
    batch = processor.apply_chat_template(chats, **arguments, processor_kwargs={"padding": True})
    assert batch["input_ids"].shape[0] == 3 and batch["pixel_values"].shape[0] == 1
    assert batch["tag_scores"].shape[0] == 1


def test_two_images_of_one_chat_keep_their_tags(processor, photo):
    content = [
        {"type": "image", "image": photo},
        {"type": "image", "image": photo, "tags": [("cat", 0.3)]},
        {"type": "text", "text": "what ?"},
    ]
    batch = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert batch["tag_attention_mask"].tolist() == [[0, 0, 0], [1, 1, 1]]
    assert batch["pixel_values"].shape[0] == 2


def test_user_text_marked_as_such_brings_no_placeholder(processor, photo):
    content = [{"type": "image", "image": photo}, {"type": "text", "text": "what is <image> ?"}]
    arguments = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    with pytest.raises(ValueError, match="text holds 2 <image> placeholders for 1 images"):
        processor.apply_chat_template([{"role": "user", "content": content}], **arguments)
    batch = processor.apply_chat_template(
        [{"role": "user", "content": content}], **arguments, sanitize_control_tokens=True
    )
    assert (batch["input_ids"] == processor.image_token_id).sum() == PLACEHOLDERS


def test_assistant_masks_count_the_expanded_placeholders(processor, photo):
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}<image> question : {{ m.content[-1].text }} answer :"
        "{% else %}{% generation %} {{ m.content[0].text }}{% endgeneration %}{% endif %}{% endfor %}"
    )
    chat = [
        {
            "role": "user",
            "content": [{"type": "image", "image": photo, "tags": TAGS}, {"type": "text", "text": "what"}],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "the dog"}]},
    ]
    for truncation in ({}, {"truncation": True, "max_length": 30, "padding": "max_length", "padding_side": "left"}):
        batch = processor.apply_chat_template(
            chat,
            chat_template=template,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            processor_kwargs=dict(truncation),
        )
        mask, ids = np.array(batch["assistant_masks"][0], bool), np.array(batch["input_ids"][0])
        assert processor.tokenizer.convert_ids_to_tokens(ids[mask].tolist()) == ["the", "dog"]


def test_token_types_on_request(processor, photo):
    batch = processor(images=photo, text="<image> what", return_mm_token_type_ids=True, return_tensors="pt")
    assert batch["mm_token_type_ids"].tolist() == [[1] * 6 + [0]]


def test_counting_without_processing(processor):
    counts = processor._get_num_multimodal_tokens(image_sizes=[[20, 30], [60, 60]])
    assert counts.num_image_tokens == [PLACEHOLDERS, PLACEHOLDERS]
    assert processor._get_num_multimodal_tokens().num_image_tokens is None


def test_decoding(processor):
    ids = processor.tokenizer("the dog </s>", return_tensors="pt")["input_ids"]
    assert processor.batch_decode(ids, skip_special_tokens=True) == ["the dog"]
    assert processor.decode(ids[0], skip_special_tokens=True) == "the dog"
    assert processor.post_process_image_text_to_text(ids) == ["the dog"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_image_tokens": 0}, "num_image_tokens=0"),
        ({"num_image_tokens": 0}, "num_image_tokens=0"),
        ({"num_prompt_tokens": -1}, "num_prompt_tokens=-1"),
        ({"tag_score_encoding": "words"}, "tag_score_encoding='words'"),
        ({"max_tags": 0}, "max_tags=0"),
        ({"image_token": "<picture>"}, "image_token='<picture>' is not in the tokenizer's vocabulary"),
    ],
)
def test_a_processor_that_cannot_be(options, words):
    with pytest.raises(ValueError, match="=") as caught:
        make_processor(**options)
    assert words in str(caught.value)


def test_bad_images_are_named(processor, tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"images\[0\]=.*empty file"):
        processor(images=tmp_path / "empty.png", text="<image> what ?")
    big = make_processor(max_pixels=100)
    with pytest.raises(ValueError, match=r"images\[1\]=.*megapixels"):
        big(images=[Image.new("RGB", (5, 5)), Image.new("RGB", (50, 5))])


def test_it_needs_no_torchvision(processor):
    assert type(processor.image_processor).__name__.endswith("Pil")
    assert isinstance(processor, PoiseProcessor) and piece_tokenizer().is_fast


def test_the_signature_names_no_modality_that_is_not_read(processor, photo):
    names = set(inspect.signature(processor.__call__).parameters)
    assert {"images", "text", "tags"} <= names and not {"videos", "audio"} & names
    with pytest.raises(ValueError, match="videos and audio are not understood"):
        processor(images=photo, text="<image> what ?", videos=["film.mp4"])


def test_a_prompt_given_first_is_not_taken_for_a_file(processor, photo):
    expected = processor(images=photo, text="<image> what ?", return_tensors="pt")
    swapped = processor("<image> what ?", photo, return_tensors="pt")
    assert all(torch.equal(swapped[name], value) for name, value in expected.items())
    assert set(processor("what is this ?")) == {"input_ids", "attention_mask"}
    with pytest.raises(FileNotFoundError, match=r"no-such-file\.png"):
        processor("no-such-file.png", "<image> what ?")


def test_names_alone_are_tags_with_score_one(processor, photo):
    texts = "<image> what ?"
    expected = processor(images=photo, text=texts, tags=[[("dog", 1.0), ("ball", 1.0)]], return_tensors="pt")
    for tags in (["dog", "ball"], [["dog", "ball"]]):
        batch = processor(images=photo, text=texts, tags=tags, return_tensors="pt")
        assert all(torch.equal(batch[name], value) for name, value in expected.items())


def test_tags_of_one_width_for_engines_that_batch_images_of_different_calls(photo):
    processor = make_processor(tag_length=6)
    rows = [
        processor(images=photo, text="<image> what ?", tags=tags, return_tensors="pt")
        for tags in (None, [TAGS], [[("dog", 0.9), ("ball", 0.8), ("dog ball", 0.7), ("ball ball ball", 0.6)]])
    ]
    for name in ("tag_input_ids", "tag_attention_mask", "tag_scores"):
        assert [row[name].shape for row in rows] == [(1, 6)] * 3
    assert [int(row["tag_attention_mask"].sum()) for row in rows] == [0, 5, 5]  # whole tags: "dog , ball"
    longer = processor(images=photo, text="<image> what ?", tags=[TAGS], tag_length=9, return_tensors="pt")
    assert longer["tag_scores"].shape == (1, 9)


def test_image_tokens_are_those_of_a_usual_tower_where_nobody_says(photo):
    processor = make_processor(num_image_tokens=None, num_prompt_tokens=0)
    ids = processor(images=photo, text="<image> what ?")["input_ids"]
    assert ids[0].count(processor.image_token_id) == 3 * 3  # 48 pixels in patches of 16
