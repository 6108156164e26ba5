import pytest

from poise.processing.chat_templates import CHAT_TEMPLATES, choose_chat_template, speaks_images

from .conftest import word_tokenizer

QUESTION = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what ?"}]}
ANSWER = {"role": "assistant", "content": [{"type": "text", "text": "dog"}]}
# Templates of the two kinds that published text models have: contents glued in, and contents tested.
TEXT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TRIMMING_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role }}]{{ message.content | trim }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def render(tokenizer, template, messages, **options):
    return tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **options)


@pytest.mark.parametrize(
    ("name", "prompt", "whole"),
    [
        ("plain", "<image>\nwhat ?\n", "<image>\nwhat ?\ndog</s>"),
        ("question_answer", "<image> question : what ? answer :", "<image> question : what ? answer : dog</s>"),
        (
            "chatml",
            "<|im_start|>user\n<image>\nwhat ?<|im_end|>\n<|im_start|>assistant\n",
            "<|im_start|>user\n<image>\nwhat ?<|im_end|>\n<|im_start|>assistant\ndog<|im_end|>\n",
        ),
    ],
)
def test_our_templates(name, prompt, whole):
    tokenizer = word_tokenizer()
    template = choose_chat_template(tokenizer, name=name)
    assert render(tokenizer, template, [QUESTION], add_generation_prompt=True) == prompt
    assert render(tokenizer, template, [QUESTION, ANSWER]) == whole


@pytest.mark.parametrize("name", sorted(CHAT_TEMPLATES))
def test_our_templates_take_plain_strings_and_text_without_images(name):
    tokenizer = word_tokenizer()
    for content in ("what ?", [{"type": "text", "text": "what ?"}]):
        messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": content}]
        text = render(tokenizer, CHAT_TEMPLATES[name], messages)
        assert "be brief" in text and text.count("what ?") == 1 and "<image>" not in text


def test_a_template_that_speaks_images_is_kept():
    own = CHAT_TEMPLATES["question_answer"] + "{# mine #}"
    tokenizer = word_tokenizer(chat_template=own)
    assert choose_chat_template(tokenizer) == own


@pytest.mark.parametrize("own", [TEXT_TEMPLATE, TRIMMING_TEMPLATE])
def test_a_template_for_text_is_taught_images_and_writes_the_rest_as_before(own):
    tokenizer = word_tokenizer(chat_template=own, bos_token="<s>")
    assert not speaks_images(tokenizer, own)
    taught = choose_chat_template(tokenizer)
    assert taught.endswith(own)
    text_only = [{"role": "user", "content": "<image>\nwhat ?"}, {"role": "assistant", "content": "dog"}]
    assert render(tokenizer, taught, [QUESTION, ANSWER]) == render(tokenizer, own, text_only)
    assert render(tokenizer, taught, text_only) == render(tokenizer, own, text_only)


def test_without_a_template_the_vocabulary_decides():
    tokenizer = word_tokenizer()
    assert choose_chat_template(tokenizer) == CHAT_TEMPLATES["plain"]
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"])
    assert choose_chat_template(tokenizer) == CHAT_TEMPLATES["chatml"]


def test_a_hopeless_template_is_replaced():
    tokenizer = word_tokenizer(chat_template="{{ raise_exception('no chats') }}")
    assert choose_chat_template(tokenizer) == CHAT_TEMPLATES["plain"]


def test_another_placeholder():
    tokenizer = word_tokenizer(image_token="<picture>")
    template = choose_chat_template(tokenizer, "<picture>")
    assert render(tokenizer, template, [QUESTION]) == "<picture>\nwhat ?\n"


def test_bad_names_and_templates():
    with pytest.raises(ValueError, match="chat_template='chatlm' is not known: choose one of plain"):
        choose_chat_template(word_tokenizer(), name="chatlm")
    with pytest.raises(ValueError, match="does not write one <image>"):
        choose_chat_template(word_tokenizer(), name="{{ messages }}")


MIXED_PARTS = [
    {"type": "text", "text": "what is"},
    {"type": "image"},
    {"type": "text", "text": "this ?"},
]


@pytest.mark.parametrize("name", list(CHAT_TEMPLATES))
def test_parts_stay_in_order_and_an_answer_is_marked(name):
    tokenizer = word_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATES[name]
    chat = [{"role": "user", "content": MIXED_PARTS}, {"role": "assistant", "content": "a dog"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    assert text.index("what is") < text.index("<image>") < text.index("this ?") < text.index("a dog")
    encoded = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    said = [i for i, kept in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if kept]
    assert tokenizer.convert_ids_to_tokens(said)[:2] == ["a", "dog"] and len(said) < len(encoded["input_ids"]) - 4


@pytest.mark.parametrize("name", list(CHAT_TEMPLATES))
def test_tools_are_refused_where_they_would_be_dropped(name):
    tokenizer = word_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATES[name]
    chat = [{"role": "user", "content": "what ?"}]
    with pytest.raises(Exception, match="no place for them"):
        tokenizer.apply_chat_template(chat, tools=[{"type": "function", "function": {"name": "f"}}], tokenize=False)
