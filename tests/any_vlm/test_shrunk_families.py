"""Families beyond those of `tiny_families`: every probe gives the model's own figures, or says why it cannot."""

import any_vlm
import pytest
import torch
import transformers as T
from recent_families import RECENT
from shrunk_families import SHRUNK

from poise.evaluation.model_errors import UnsupportedProbe
from poise.evaluation.probing.parts import model_parts
from poise.evaluation.probing.prompt_batch import PromptBatch
from poise.modeling.modeling_vlm_router import RoutedVlm

# No place of the sequence holds their image.
WITHOUT_IMAGE_TOKENS = ("blip", "git", "kosmos2_5", "udop")
# A reliability router reads the states of a tower, and a place where all of what is seen enters.
WITHOUT_ROUTER = (*WITHOUT_IMAGE_TOKENS, "gemma4_unified", "granite4_vision")


@pytest.mark.parametrize("name", [*SHRUNK, *RECENT])
def test_every_probe(name):
    cells = dict(zip(any_vlm.PROBES, any_vlm.row_of(name)[1:-1], strict=True))
    assert "WRONG" not in cells.values() and cells["answers"] == "yes"
    if name in WITHOUT_IMAGE_TOKENS:
        assert cells["ablation"] == cells["patches"] == cells["lens"] == "no"
    else:
        assert cells["ablation"] == cells["lens"] == "yes"
    assert cells["router"] == ("no" if name in WITHOUT_ROUTER else "yes")


def test_a_family_without_a_tower_takes_a_router_that_needs_none():
    model, inputs = RECENT["gemma4_unified"]()
    images = {name: inputs[name] for name in ("pixel_values", "image_position_ids")}
    encoder = T.BertModel(T.BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=50))
    with pytest.raises(ValueError, match="shows no hidden states of a vision tower"):
        RoutedVlm.from_vlm(model, encoder, example=images)
    with torch.no_grad():
        own = model(**inputs).logits
        assert torch.equal(RoutedVlm.from_vlm(model, encoder, example=images, router_type="gate")(**inputs).logits, own)


def test_features_of_deeper_layers_alone_are_replaced_in_their_layers():
    """Granite 4 Vision's features name the layer that each enters."""
    model, inputs = RECENT["granite4_vision"]()
    prompts = PromptBatch(model_parts(model), inputs)
    own = prompts.features.output.deepstack_features
    again = prompts.features.with_rows(2 * prompts.features.rows).deepstack_features
    assert [layer for layer, _ in again] == [layer for layer, _ in own] and len(own) == 5
    for (_, doubled), (_, given) in zip(again, own, strict=True):
        torch.testing.assert_close(doubled[0], 2 * given[0])


def test_what_reads_no_image_or_no_question_is_refused():
    text = T.Mistral4Config(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, vocab_size=50, n_routed_experts=2
    )
    for config, cls, why in (
        (text, T.Mistral4ForCausalLM, "its forward takes no image"),
        (T.Pix2StructConfig(), T.Pix2StructForConditionalGeneration, "its question is drawn into the image"),
    ):
        with torch.device("meta"):
            model = cls(config)
        with pytest.raises(UnsupportedProbe, match=f"{config.model_type}.* cannot be looked into: {why}"):
            model_parts(model)
