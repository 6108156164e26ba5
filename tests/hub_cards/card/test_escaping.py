"""What others have named or written shows on a card as it stands: nothing of it becomes Markdown or HTML."""

import dataclasses
import re

import pytest

from poise.hub_cards.card.data import CardData, EvaluationRow
from poise.hub_cards.card.escaping import code, escape, python
from poise.hub_cards.card.model_card import build_card
from poise.modeling import PoiseConfig

pytest.importorskip("markdown_it", reason="markdown-it-py is not installed; pip install -e .[test]")
from markdown_it import MarkdownIt  # noqa: E402

HOSTILE = {
    "script": "<script>alert(1)</script>",
    "image": "![x](https://evil.example/pixel.png)",
    "image in HTML": "<img src=https://evil.example/pixel.png>",
    "heading": "x\n\n# Official model\n\n",
    "heading below": "x\n===\n",
    "link": "[here](https://evil.example)",
    "bare address": "see https://evil.example or www.evil.example or mail a@evil.example",
    "table": "a | b\n| --- | --- |\n| c | d |",
    "code": "`</code>` ```\n</details><script>x</script>",
    "fence": "\n```\n<script>x</script>\n```\n",
    "quotation": "> quoted",
    "list": "- item\n1. item",
    "attribute": '" onerror="alert(1)',
    "template": "{{ config }} {% raw %}",
    "direction": "abc\u202etxt.exe\u2066\u200b",
    "comment": "<!-- x",
    "entity": "&lt;script&gt;",
}
SCORE = EvaluationRow("clean", "vqa_accuracy", 0.5, n=3, dataset="d")


def row(**fields):
    return dataclasses.replace(SCORE, **fields)


# Every text that a card shows: a function from it to what `build_card` is given beside the configuration.
FIELDS = {
    "model_name": lambda text: {"card_data": CardData(model_name=text)},
    "repository": lambda text: {"repository": text},
    "license": lambda text: {"card_data": CardData(license=text)},
    "language": lambda text: {"card_data": CardData(language=[text])},
    "dataset name": lambda text: {"card_data": CardData(datasets=[{"name": text}])},
    "dataset hub_id": lambda text: {"card_data": CardData(datasets=[{"name": "x", "hub_id": text}])},
    "dataset split": lambda text: {"card_data": CardData(datasets=[{"name": "x", "split": text}])},
    "dataset description": lambda text: {"card_data": CardData(datasets=[{"name": "x", "description": text}])},
    "hardware": lambda text: {"card_data": CardData(hardware=text)},
    "version name": lambda text: {"card_data": CardData(versions={text: "1"})},
    "version": lambda text: {"card_data": CardData(versions={"torch": text})},
    "parameter group": lambda text: {"card_data": CardData(parameters={text: 1, "total": 2})},
    "quantization": lambda text: {"card_data": CardData(recipe={"model": {"quantization": text}})},
    "learning rate group": lambda text: {"card_data": CardData(recipe={"learning_rates": {text: 1e-3}})},
    "batch size": lambda text: {"card_data": CardData(recipe={"training": {"per_device_train_batch_size": text}})},
    "LoRA": lambda text: {"card_data": CardData(recipe={"lora": {"r": text, "alpha": 1}})},
    "limitation": lambda text: {"card_data": CardData(limitations=[text])},
    "verdict": lambda text: {"card_data": CardData(verdict=[text], dominance=[SCORE])},
    "backbone licence": lambda text: {"card_data": CardData(backbone_licenses={"acme/words": text})},
    "condition": lambda text: {"card_data": CardData(robustness=[SCORE, row(condition=text, value=0.1)])},
    "metric": lambda text: {"card_data": CardData(robustness=[row(metric=text)], evaluation=[row(metric=text)])},
    "data of a score": lambda text: {"card_data": CardData(evaluation=[row(dataset=text)])},
    "data of robustness": lambda text: {"card_data": CardData(robustness=[row(dataset=text)])},
    "dominance": lambda text: {"card_data": CardData(dominance=[row(condition=text, dataset=text)])},
    "question": lambda text: {"sample": {"image": "s.png", "question": text, "tags": [], "answer": "x"}},
    "tag": lambda text: {"sample": {"image": "s.png", "question": "x", "tags": [[text, 0.5]], "answer": "x"}},
    "answer": lambda text: {"sample": {"image": "s.png", "question": "x", "tags": [], "answer": text}},
    "image of the sample": lambda text: {"sample": {"image": text, "question": "x", "tags": [], "answer": "x"}},
    "plot": lambda text: {"card_data": CardData(robustness=[SCORE]), "plots": {"robustness": text}},
    "vision tower": lambda text: {"backbones": {"vision": f"tiny:{text}", "text": "acme/words"}},
    "language model": lambda text: {"backbones": {"vision": "acme/tower", "text": text}},
}  # fmt: skip


def shown(text, field=None):
    """The card with that text in one field: what a renderer makes of it."""
    made = FIELDS[field](text) if field else {}
    backbones = made.pop("backbones", {"vision": "acme/tower", "text": "acme/words", "tag_encoder": "acme/tags"})
    given = {"card_data": CardData(), "repository": "user/name", **made}
    card = build_card(PoiseConfig(router_type="reliability", backbones=backbones), **given)
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(card.text)
    return card, tokens


def structure(tokens):
    """Headings, raw HTML, links and images of a rendered card."""
    found = []
    for number, token in enumerate(tokens):
        if token.type == "heading_open" and token.tag != "h1":
            found.append(tokens[number + 1].content)
        elif token.type == "html_block":
            found.append(re.sub(r'src="[^"<>]*"', "src", token.content))
        elif token.type in ("h1", "fence", "blockquote_open", "ordered_list_open"):
            found.append(token.type)
        found += [
            f"{child.type} {re.match('https?:|//', str(child.attrs.get('src', ''))) is not None}"
            for child in token.children or []
            if child.type in ("html_inline", "image", "link_open")
        ]
    return found


@pytest.mark.parametrize("field", FIELDS)
def test_no_field_lets_markdown_or_html_through(field):
    card, tokens = shown("plain", field)
    expected = structure(tokens)
    for kind, text in HOSTILE.items():
        hostile, tokens = shown(text, field)
        assert structure(tokens) == expected, kind
        body = hostile.text
        outside = re.sub(r"```python.*?```", "", body, flags=re.DOTALL)
        assert not re.search("[\u202a-\u202e\u2066-\u2069]", body), kind
        bare = re.sub(r"`[^`\n]*`|\]\([^)]*\)|src=\"[^\"]*\"", "", outside)
        assert "://" not in bare and "www." not in bare and "a@evil" not in bare, kind
        assert hostile.data.to_dict().keys() <= {*card.data.to_dict(), "datasets"}, kind


def test_plain_text_stays_readable():
    for text in ("VQA accuracy", "prior_broken", "image blur (severity 3)", "0.5 [0.4, 0.6]", "a + b", "it's"):
        assert re.sub(r"\\(.)", r"\1", escape(text)).replace("&#x27;", "'") == text
    assert escape("prior_broken") == "prior_broken" and escape(escape("a*b")) == r"a\*b"
    assert code("a`b") == "`a'b`" and code("") == ""
    assert eval(python(["a\n</script>```", 0.5])) == ["a\n</script>```", 0.5]
