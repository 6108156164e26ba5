"""Where a file puts its weights changes no result: not in a loaded model, and not in one assembled from backbones.

For a single row, MKL multiplies by another kernel where the weight is not aligned to 16 bytes. That is so on AMD's
processors, and on Intel's under MKL_ENABLE_INSTRUCTIONS=SSE4_2, which is one of the settings of `.ci/run`.
"""

import struct
from pathlib import Path

import pytest
import torch
from tiny_models import LANGUAGES, Sample, batch_of, decoder_inputs, open_model
from transformers import AutoModel

from poise.modeling import PoiseForConditionalGeneration
from poise.modeling.backbones import align_weights

pytestmark = pytest.mark.numerics
OFFSETS = range(0, 64, 4)  # bytes past a multiple of 64


def shift(path, offset):
    """Lengthen the header of a safetensors file: its first tensor then begins `offset` bytes past a multiple of 64."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = content[8 : 8 + length].rstrip()
    header += b" " * ((offset - 8 - len(header)) % 64)
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])


def misplaced(model):
    return [name for name, value in model.state_dict().items() if value.is_floating_point() and value.data_ptr() % 64]


@torch.no_grad()
def results(model):
    """Logits, and those of four generated tokens: one image, a pooled prompt token, one row in every layer."""
    sample = Sample()
    prompt = batch_of(model, sample, answers=False)
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    generated = model.generate(**prompt, **settings, return_dict_in_generate=True, output_logits=True)
    return torch.cat([model(**batch_of(model, sample), **decoder_inputs(model, sample)).logits[0], *generated.logits])


@pytest.mark.parametrize("language,router", [*((language, "reliability") for language in LANGUAGES), ("llama", "gate")])
def test_a_file_may_begin_its_weights_at_any_byte(language, router, tmp_path):
    model = open_model(language, router_type=router, soft_prompt_pooling="mean", soft_prompt_length=1)
    model.save_pretrained(tmp_path)
    expected = results(model)
    for offset in OFFSETS:
        shift(tmp_path / "model.safetensors", offset)
        loaded = PoiseForConditionalGeneration.from_pretrained(tmp_path)
        assert not misplaced(loaded), offset
        assert torch.equal(results(loaded), expected), offset


def test_a_model_of_backbones_begins_aligned(backbones):
    for kind in ("vision", "text", "tag_encoder"):
        name = {"vision": "siglip", "text": "llama", "tag_encoder": "bert"}[kind]
        shift(Path(backbones(kind, name)) / "model.safetensors", 20)
        assert misplaced(AutoModel.from_pretrained(backbones(kind, name))), "or this test shows nothing"
    assert not misplaced(PoiseForConditionalGeneration.from_backbones(**backbones.arguments()))


def test_copies_are_made_where_they_are_needed_and_nowhere_else():
    layer = torch.nn.Linear(4, 4)
    raw = torch.zeros(20)
    layer.weight.data = raw[1:17].view(4, 4).copy_(layer.weight.data)
    layer.register_buffer("counts", torch.arange(9)[1:])
    values, bias, counts = layer.weight.detach().clone(), layer.bias.data_ptr(), layer.counts.data_ptr()
    assert layer.weight.data_ptr() % 64 and align_weights(layer) is layer
    assert layer.weight.data_ptr() % 64 == 0 and torch.equal(layer.weight, values)
    assert (layer.bias.data_ptr(), layer.counts.data_ptr()) == (bias, counts)
