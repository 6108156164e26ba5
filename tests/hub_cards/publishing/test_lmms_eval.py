"""lmms-eval finds Poise by its entry point in the real registry, and its requests are answered as the model answers."""

import importlib.metadata

import pytest
from PIL import Image

pytest.importorskip("lmms_eval.models", reason="lmms_eval is not installed (pip install --no-deps lmms_eval loguru)")

from lmms_eval.api.instance import Instance  # noqa: E402
from lmms_eval.models.registry_v2 import ModelRegistryV2  # noqa: E402

from poise.hub_cards.publishing.clean_process import answer  # noqa: E402

QUESTION = "what color is the square ?"


@pytest.fixture(scope="module")
def registry():
    registry = ModelRegistryV2()
    registry.load_entrypoint_manifests()
    return registry


@pytest.fixture(scope="module")
def model(registry, built):
    found = registry.get_model_class("poise")  # checks that it is one of lmms-eval's chat models
    arguments = f"pretrained={built.folder},dtype=float32"
    return found.create_from_arg_string(arguments, {"batch_size": 2, "max_batch_size": None, "device": "cpu"})


def requests_for(model, documents, settings):
    """As lmms-eval's chat tasks make them: one per document of the split."""
    model.task_dict = {"squares": {"test": documents}}

    def messages(document):
        parts = [{"type": "image", "url": image} for image in document["images"]]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": document["question"]}]}]

    return [
        Instance(
            request_type="generate_until",
            arguments=("", messages, dict(settings[place]), place, "squares", "test"),
            idx=0,
            metadata={"task": "squares", "doc_id": place, "repeats": 1},
        )
        for place in range(len(documents))
    ]


def test_the_entry_point_is_declared():
    (entry,) = [one for one in importlib.metadata.entry_points(group="lmms_eval.models") if one.name == "poise"]
    assert entry.value == "poise.lmms_eval_plugin:manifest"


def test_the_registry_lists_poise_as_a_chat_model(registry):
    import lmms_eval.models

    assert "poise" in lmms_eval.models.list_available_models()
    assert registry.resolve("poise").model_type == "chat"


def test_requests_are_answered_in_order_whatever_shares_their_batch(model, built, samples):
    images = [Image.open(samples[0]["image"]).convert("RGB"), Image.new("RGB", (40, 30), "green")]
    documents = [
        {"images": images[:1], "question": QUESTION},
        {"images": images[1:], "question": "what is the ball ?"},
        {"images": images[1:], "question": QUESTION},
        {"images": images[:1], "question": "what color is the green ball ? blue , red"},
    ]
    short, long = {"max_new_tokens": 3, "until": ["\n"]}, {"max_new_tokens": 5, "temperature": 0, "top_p": None}
    results = model.generate_until(requests_for(model, documents, [short, long, short, long]))
    for document, result, length in zip(documents, results, (3, 5, 3, 5), strict=True):
        sample = {"image": document["images"][0], "question": document["question"]}
        assert result.text == answer(built.model, built.processor, sample, length)
        assert 0 < result.token_counts.output_tokens <= length


def test_answers_end_where_the_task_says(model):
    from poise.lmms_eval_model import cut_at

    assert cut_at("red . blue", ["\n", "."]) == "red "
    assert cut_at("red", None) == cut_at("red", "") == "red"


def test_a_tagger_gives_every_image_its_tags(model, monkeypatch):
    class Tagger:
        def tag_records(self, records):
            return [[("red square", 0.9)] for _ in records]

    monkeypatch.setattr(model, "tagger", Tagger())
    image = Image.new("RGB", (40, 30), "red")
    (request,) = requests_for(model, [{"images": [image], "question": QUESTION}], [{}])
    (message,) = model._messages(*request.args)
    assert message["content"][0]["tags"] == [("red square", 0.9)] and message["content"][0]["image"] is image


def test_what_it_cannot_do_is_said(model, built):
    requests = requests_for(model, [{"images": [], "question": QUESTION}], [{}])
    requests[0].arguments = ("", lambda document: [{"role": "user", "content": [{"type": "video", "url": "x.mp4"}]}],
                             {}, 0, "squares", "test")  # fmt: skip
    with pytest.raises(ValueError, match="'squares' shows video or sound"):
        model.generate_until(requests)
    with pytest.raises(ValueError, match="'color', which is not known"):
        type(model)(str(built.folder), color="blue")
    with pytest.raises(ValueError, match="batch_size='auto'"):
        type(model)(str(built.folder), batch_size="auto")
