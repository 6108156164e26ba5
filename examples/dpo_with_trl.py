# /// script
# requires-python = ">=3.11"
# dependencies = ["poise @ git+https://github.com/poise-vlm/poise", "trl"]
# ///
"""Prefer what the image shows to what the prior says, with TRL's `DPOTrainer` on a published Poise model.

    python examples/dpo_with_trl.py outputs/demo/published --data pairs.jsonl

A pair is one JSON line: {"image": "a.png", "question": "what color is the ball ?", "chosen": "red", "rejected": "blue",
"tags": [["ball", 0.9]]}. `poise preference` draws such pairs by itself and evaluates what they change.
"""

import argparse

import torch
from datasets import Dataset
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer

from poise import PoiseForConditionalGeneration, PoiseProcessor
from poise.training.preference.pairs import PreferenceRecords
from poise.training.preference.trainer import PreferenceCollator

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--data", required=True)
parser.add_argument("--output", default="outputs/dpo")
parser.add_argument("--steps", type=int, default=100)
arguments = parser.parse_args()

model = PoiseForConditionalGeneration.from_pretrained(arguments.model)
processor = PoiseProcessor.from_pretrained(arguments.model)
# An Arrow table takes a tag as a mapping.
pairs = [{**pair, "tags": [tag._asdict() for tag in pair["tags"]]} for pair in PreferenceRecords(arguments.data)]
trainer = DPOTrainer(
    model=model,
    args=DPOConfig(
        arguments.output,
        max_steps=arguments.steps,
        per_device_train_batch_size=4,
        learning_rate=1e-4,
        remove_unused_columns=False,
        bf16=torch.cuda.is_available(),
        report_to="none",
    ),
    train_dataset=Dataset.from_list(pairs),
    processing_class=processor,
    data_collator=PreferenceCollator(processor),  # TRL's own would leave out the tags of an image
    # The reference model is the same one with its adapter switched off.
    peft_config=LoraConfig(target_modules=r".*language_model\..*\.(q|v)_proj"),
)
trainer.train()
trainer.save_model(arguments.output)
