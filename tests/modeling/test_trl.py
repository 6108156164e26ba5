"""One step of TRL's own DPO trainer goes through router and soft prompt, which its trainers would otherwise pass by.

TRL calls `base_model`, not the outer `forward`, and its collator renders chat messages to text before the processor
sees them, which loses the tags of image entries. Poise's collator makes the rows instead; `poise preference` uses both.
"""

import copy

import pytest
import torch
from PIL import Image

from poise.modeling import PoiseForConditionalGeneration
from poise.processing.processing_poise import PoiseProcessor
from poise.training.preference.trainer import PreferenceCollator

trl = pytest.importorskip("trl")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def parts(backbones):
    """`parts(router)` gives model, processor and a preference data set of four images."""
    from datasets import Dataset

    arguments = backbones.arguments("siglip", "llama_with_placeholder")
    rows = [
        {
            "id": f"{number}",
            "image": Image.new("RGB", (24, 24), color),
            "task": "vqa",
            "tags": [{"name": "dog", "score": 0.9}, {"name": color, "score": 0.6}],
            "question": "what color is the square ?",
            "chosen": color,
            "rejected": "ball dog",
        }
        for number, color in enumerate(("red", "blue", "red", "blue"))
    ]

    def build(router):
        torch.manual_seed(0)
        model = PoiseForConditionalGeneration.from_backbones(
            **arguments, router_type=router, soft_prompt_length=2, stream_dropout=0.5,
            tag_score_encoding="embedding",
        )  # fmt: skip
        return model, PoiseProcessor.from_backbones(**arguments, config=model.config), Dataset.from_list(rows)

    return build


def test_tags_reach_the_batch(parts):
    model, processor, rows = parts("none")
    batch = PreferenceCollator(processor)([rows[0], rows[1]])
    assert batch["pixel_values"].shape[0] == batch["tag_input_ids"].shape[0] == 4
    placeholders = (batch["input_ids"] == model.config.image_token_id).sum(-1)
    assert (placeholders == model.config.num_image_tokens + 2).all()
    assert batch["tag_attention_mask"].any(-1).all() and batch["tag_scores"].max() > 0.5


@pytest.mark.parametrize("router,adapter", [("gate", False), ("reliability", True)])
def test_one_step_moves_router_and_soft_prompt(parts, router, adapter, tmp_path):
    """Everything trained against a copy, and an adapter with the new modules against itself switched off."""
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    model, processor, rows = parts(router)
    arguments = DPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=2, max_steps=3, learning_rate=0.05, report_to="none",
        use_cpu=True, bf16=False, activation_checkpointing=False, remove_unused_columns=False, logging_steps=1,
        save_strategy="no", disable_tqdm=True, optim="sgd", max_grad_norm=0.0, beta=1.0, lr_scheduler_type="constant",
        disable_dropout=router == "gate",  # the null tokens of `reliability` learn where whole streams are dropped
    )  # fmt: skip
    peft_config = LoraConfig(
        target_modules=r".*language_model\..*\.(q|v)_proj", modules_to_save=["projector", "soft_prompt", "router"]
    )
    trainer = DPOTrainer(
        model=model, ref_model=None if adapter else copy.deepcopy(model), args=arguments, train_dataset=rows,
        processing_class=processor, data_collator=PreferenceCollator(processor),
        peft_config=peft_config if adapter else None,
    )  # fmt: skip
    routed = []
    for module in trainer.model.modules():
        if type(module).__name__ in ("GateRouter", "ReliabilityRouter"):
            module.register_forward_hook(lambda module, inputs, output: routed.append(output[1].shape))
    learning = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert {part for part in ("projector", "soft_prompt", "router", "lora_") if any(part in n for n in learning)} == {
        "projector", "soft_prompt", "router", *(["lora_"] if adapter else []),
    }  # fmt: skip
    trainer.train()
    assert len(routed) >= 3 and set(routed) == {torch.Size([4, 2])}  # chosen and rejected, two each
    still = [n for n, p in trainer.model.named_parameters() if n in learning and p.equal(learning[n])]
    # Every image had tags; and the complement's query reads a null token that itself was zero at first.
    assert [n for n in still if "no_tags" not in n and "complement.key" not in n and "complement.query" not in n] == []
    if router == "gate":  # without dropout the reference is at first the model itself
        log = [entry for entry in trainer.state.log_history if "loss" in entry]
        assert float(log[0]["loss"]) == pytest.approx(0.6931, abs=1e-3)
        assert float(log[2]["loss"]) < float(log[0]["loss"])
