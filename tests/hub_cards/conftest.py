"""A Poise model of random weights whose backbones lie in folders, saved as training leaves it."""

from pathlib import Path

import pytest
from folder_models import Built, build, save_backbones
from PIL import Image

from poise.processing import Scenes


@pytest.fixture(scope="session")
def backbones(tmp_path_factory) -> dict[str, str]:
    """Folders of the vision tower, the language model and the tag encoder."""
    return save_backbones(tmp_path_factory.mktemp("backbones"))


@pytest.fixture(scope="session")
def built(backbones, tmp_path_factory) -> Built:
    """A model with a reliability router, saved as `save_pretrained` of model and processor leave it."""
    model, processor = build(backbones, router_type="reliability")
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Built(model, processor, folder)


@pytest.fixture(scope="session")
def image(tmp_path_factory) -> Path:
    """A drawn scene as a file."""
    path = tmp_path_factory.mktemp("image") / "scene.png"
    Scenes("test", size=1)[0]["image"].save(path)
    return path


@pytest.fixture(scope="session")
def samples(image, tmp_path_factory):
    """Three questions about two images, with and without tags."""
    other = tmp_path_factory.mktemp("image") / "green.png"
    Image.new("RGB", (40, 30), "green").save(other)
    question = "what color is the square ?"
    return [
        {"image": str(image), "question": question, "tags": [["red square", 0.9], ["dog", 0.2]]},
        {"image": str(other), "question": question, "tags": []},
        {"image": str(other), "question": "what is the ball ?"},
    ]


@pytest.fixture
def hub():
    """A Hub on the loopback interface, started anew for every test."""
    from loopback_hub import LoopbackHub

    with LoopbackHub() as hub:
        yield hub


@pytest.fixture
def online(hub, monkeypatch, tmp_path):
    """This process talks to the loopback Hub, with a token that may write; its variables were read at import."""
    from huggingface_hub import close_session, constants
    from loopback_hub import WRITE_TOKEN

    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub_cache"))  # for processes that this one starts
    monkeypatch.setattr("transformers.utils.hub._hf_api", None)
    monkeypatch.setenv("HF_TOKEN", WRITE_TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    close_session()
    yield hub
    close_session()
    assert not hub.unknown, f"the loopback Hub lacks {hub.unknown}"
