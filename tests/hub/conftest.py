"""A Poise model of random weights whose backbones lie in folders, saved as training leaves it."""

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from poise.modeling import PoiseForConditionalGeneration
from poise.processing import PoiseProcessor, Scenes

sys.path.insert(0, str(Path(__file__).parent))

WORDS = "what color is the square circle ? red blue green yellow dog ball question answer tags : , .".split()
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random state."""
    torch.manual_seed(0)


def word_tokenizer(folder: Path, special_tokens: dict[str, str]) -> int:
    """Saves a tokenizer of whole words; returns the size of its vocabulary."""
    vocabulary = {word: place for place, word in enumerate([*special_tokens.values(), *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special_tokens["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(behavior="isolated")]
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special_tokens).save_pretrained(folder)
    return len(vocabulary)


def save_backbones(folder: Path, shape: dict[str, int] = SHAPE) -> dict[str, str]:
    """Backbones of random weights, each in a folder in the Hub's layout."""
    backbones = {part: str(folder / part) for part in ("vision", "text", "tag_encoder")}
    torch.manual_seed(0)
    SiglipVisionModel(SiglipVisionConfig(image_size=16, patch_size=8, **shape)).save_pretrained(backbones["vision"])
    SiglipImageProcessor(size={"height": 16, "width": 16}).save_pretrained(backbones["vision"])
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    size = word_tokenizer(folder / "text", special)
    # Large weights: an untrained model of the usual scale answers everything with one and the same word.
    llama = LlamaConfig(vocab_size=size, bos_token_id=2, eos_token_id=3, pad_token_id=0, initializer_range=0.3, **shape)
    LlamaForCausalLM(llama).save_pretrained(backbones["text"])
    size = word_tokenizer(folder / "tag_encoder", {**special, "cls_token": "[CLS]", "sep_token": "[SEP]"})
    BertModel(BertConfig(vocab_size=size, max_position_embeddings=64, **shape)).save_pretrained(
        backbones["tag_encoder"]
    )
    return backbones


@dataclass(frozen=True)
class Built:
    """A model and its processor, and the folder into which both were saved."""

    model: PoiseForConditionalGeneration
    processor: PoiseProcessor
    folder: Path


@pytest.fixture(scope="session")
def backbones(tmp_path_factory) -> dict[str, str]:
    """Folders of the vision tower, the language model and the tag encoder."""
    return save_backbones(tmp_path_factory.mktemp("backbones"))


def build(backbones: dict[str, str], **fields):
    """Model and processor around the backbones, named as if they came from the Hub."""
    torch.manual_seed(0)
    model = PoiseForConditionalGeneration.from_backbones(**backbones, soft_prompt_length=2, **fields)
    processor = PoiseProcessor.from_backbones(**backbones, config=model.config)
    model.config.backbones = {"vision": "acme/tower", "text": "acme/words", "tag_encoder": "acme/tags"}
    return model, processor


@pytest.fixture(scope="session")
def built(backbones, tmp_path_factory) -> Built:
    """A model with a reliability router, saved as `save_pretrained` of model and processor leave it."""
    model, processor = build(backbones, router_type="reliability")
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Built(model, processor, folder)


@pytest.fixture(scope="session")
def picture(tmp_path_factory) -> Path:
    """A drawn scene as a file."""
    path = tmp_path_factory.mktemp("picture") / "scene.png"
    Scenes("test", size=1)[0]["image"].save(path)
    return path


@pytest.fixture(scope="session")
def samples(picture, tmp_path_factory):
    """Three questions about two pictures, with and without tags."""
    other = tmp_path_factory.mktemp("picture") / "green.png"
    Image.new("RGB", (40, 30), "green").save(other)
    question = "what color is the square ?"
    return [
        {"image": str(picture), "question": question, "tags": [["red square", 0.9], ["dog", 0.2]]},
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
