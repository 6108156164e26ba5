"""The question about an image: the words of the turn that holds it, however the prompt came to be."""

import pytest

from poise.processing.chat_templates import CHAT_TEMPLATES
from poise.processing.questions import TurnFrame, questions_of_images, tokenize_questions

from .conftest import make_processor, piece_tokenizer

# Formats of published models, each with something that a simple cut would stumble over.
INST = (  # Mistral: no mark between the end of an answer and the next turn but [INST]
    "{{ '<s>' }}{%- for m in messages -%}{%- if m['role'] == 'user' -%}{{ '[INST] ' }}"
    "{%- for p in m['content'] -%}{{ '<image>' if p['type'] == 'image' else p['text'] }}{%- endfor -%}{{ ' [/INST]' }}"
    "{%- else -%}{{ ' ' + m['content'][0]['text'] + '</s>' }}{%- endif -%}{%- endfor -%}"
)
THINKING = (  # a default system prompt, and more before an answer that is generated than before one that is given
    "{%- if messages[0]['role'] != 'system' -%}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{%- endif -%}"
    "{%- for m in messages -%}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{%- for p in m['content'] -%}{{ '<image>' if p['type'] == 'image' else p['text'] }}{%- endfor -%}"
    "{{ '<|im_end|>\n' }}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n<think>\n' }}"
    "{%- endif -%}"
)
TEMPLATES = {
    "question_answer": CHAT_TEMPLATES["question_answer"],
    "chatml": CHAT_TEMPLATES["chatml"],
    "inst": INST,
    "thinking": THINKING,
}


def turn(*parts, role="user"):
    content = [{"type": "image"} if part == "<image>" else {"type": "text", "text": part} for part in parts]
    return {"role": role, "content": content}


CHAT = [
    turn("be brief", role="system"),
    turn("<image>", "what is this ?"),
    turn("a red dog", role="assistant"),
    turn("<image>", "<image>", "and these ?"),
    turn("two balls", role="assistant"),
]


@pytest.fixture(params=TEMPLATES)
def processor(request):
    return make_processor(chat_template=TEMPLATES[request.param])


def questions(processor, chat, answered):
    text = processor.apply_chat_template(chat, add_generation_prompt=not answered)
    places = [start for start, _ in processor._placeholders([text])[0]]
    specials = ["<image>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    return questions_of_images(text, places, specials, processor._turn_frame())


@pytest.mark.parametrize("system", [True, False])
def test_each_image_is_asked_about_by_its_own_turn_and_no_answer_is_part_of_it(processor, system):
    if system and "[INST]" in processor.chat_template:
        pytest.skip("this format has no system turn")
    chat = CHAT if system else CHAT[1:]
    expected = ["what is this ?", "and these ?", "and these ?"]
    assert questions(processor, chat, answered=True) == expected  # as trainers render whole conversations
    assert questions(processor, chat[:-1], answered=False) == expected  # as prompts are rendered
    assert questions(processor, chat[: 2 if system else 1], answered=False) == expected[:1]


def test_a_template_that_refuses_or_garbles_chats_leaves_the_whole_text():
    def refusing(chat, add_generation_prompt):
        raise RuntimeError("this template wants a tool")

    assert TurnFrame.of(refusing) == TurnFrame.of(lambda chat, add_generation_prompt: "nothing") == TurnFrame()
    assert questions_of_images("<image> what <s> color ?", [0], ["<image>", "<s>"], TurnFrame()) == ["what color ?"]


def test_questions_are_rows_of_one_width_in_the_tag_encoders_words():
    tokenizer = piece_tokenizer()
    rows = tokenize_questions(["dog , ball", "", "dog dog dog dog dog dog"], tokenizer, 4)
    ids, mask = rows["question_input_ids"], rows["question_attention_mask"]
    assert mask.tolist() == [[1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]]
    assert tokenizer.convert_ids_to_tokens(ids[0, :3].tolist()) == ["dog", ",", "ball"]
    assert not ids[mask == 0].any()


def test_the_processor_gives_the_question_without_tag_words_and_only_where_images_are(photo):
    processor = make_processor(question_length=8)
    texts = ["<image> question : what color ? answer :", "question : what ? answer :"]
    batch = processor(images=[photo], text=texts, tags=[[("dog", 0.9)]], padding=True, return_tensors="pt")
    assert batch["question_input_ids"].shape == batch["question_attention_mask"].shape == (1, 8)
    asked = batch["question_input_ids"][0][batch["question_attention_mask"][0].bool()].tolist()
    assert asked == processor.tag_tokenizer("what color ?", add_special_tokens=False)["input_ids"]
    without_tag_encoder = make_processor(tag_tokenizer=None)
    assert "question_input_ids" not in without_tag_encoder(images=[photo], text=texts[:1])
    assert not {"question_input_ids"} & set(make_processor(question_length=None)(images=[photo], text=texts[:1]))
    with pytest.raises(ValueError, match="question_length=0 must be at least 1"):
        make_processor(question_length=0)
