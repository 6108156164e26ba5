# /// script
# requires-python = ">=3.11"
# dependencies = ["poise @ git+https://github.com/poise-vlm/poise"]
# ///
"""Build a vision-language model from three frozen backbones and train what connects them, with the plain `Trainer`.

    python examples/build_from_backbones.py --data records/train.jsonl

`poise sft` does the same from a recipe, with LoRA, 4-bit backbones, a feature cache and evaluation.
"""

import argparse

from transformers import Trainer, TrainingArguments

from poise import PoiseForConditionalGeneration, PoiseProcessor
from poise.processing import TrainingCollator
from poise.processing.records.record_sources import RecordSource, open_records

parser = argparse.ArgumentParser()
parser.add_argument("--vision", default="google/siglip2-base-patch16-224")
parser.add_argument("--text", default="HuggingFaceTB/SmolLM2-135M-Instruct")
parser.add_argument("--tag-encoder", default="sentence-transformers/all-MiniLM-L6-v2")
parser.add_argument("--data", default="scenes")
parser.add_argument("--output", default="outputs/own_vlm")
parser.add_argument("--steps", type=int, default=1000)
arguments = parser.parse_args()

backbones = {"vision": arguments.vision, "text": arguments.text, "tag_encoder": arguments.tag_encoder}
model = PoiseForConditionalGeneration.from_backbones(**backbones, router_type="reliability")
processor = PoiseProcessor.from_backbones(**backbones, config=model.config)
trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
print(f"{trained:,} of {model.num_parameters():,} parameters learn: projector, soft prompt and router")

trainer = Trainer(
    model,
    TrainingArguments(
        arguments.output,
        max_steps=arguments.steps,
        learning_rate=1e-3,
        per_device_train_batch_size=8,
        remove_unused_columns=False,  # records are dicts that the collator reads
        report_to="none",
    ),
    train_dataset=open_records(RecordSource(arguments.data)),
    data_collator=TrainingCollator(processor),
)
trainer.train()
model.save_pretrained(arguments.output)
processor.save_pretrained(arguments.output)  # AutoModelForImageTextToText.from_pretrained(output) loads both
