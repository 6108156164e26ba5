"""PEFT on a published folder: adapters on the language model, new modules beside them, saved and loaded."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import Sample, batch_of, open_model
from transformers import AutoModelForImageTextToText

pytestmark = pytest.mark.numerics

TWO = (Sample(), Sample(images=(2, 3), tags=(True, False)))


@pytest.mark.parametrize("router", ["gate", "reliability"])
def test_what_was_trained_is_saved_and_loaded(router, tmp_path):
    open_model(router_type=router).save_pretrained(tmp_path / "model")

    def published():
        return AutoModelForImageTextToText.from_pretrained(tmp_path / "model")

    config = LoraConfig(r=2, target_modules=r".*language_model.*\.(q|v)_proj", modules_to_save=["projector", "router"])
    trained = get_peft_model(published(), config).train()
    batch = batch_of(trained.base_model.model, TWO, labels=True)
    optimizer = torch.optim.SGD([p for p in trained.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):  # the second step moves what LoRA starts at zero
        trained(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    trained.eval().save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        before, expected = published()(**batch).logits, trained(**batch).logits
        loaded = PeftModel.from_pretrained(published(), tmp_path / "adapter").eval()
        found, merged = loaded(**batch).logits, loaded.merge_and_unload()(**batch).logits
    # Loaded weights lie at other addresses, and merged ones are added before they are multiplied.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(merged, expected, rtol=1e-3, atol=1e-4)
    assert (expected - before).abs().max() > 1e-2
