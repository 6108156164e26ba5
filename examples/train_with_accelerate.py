# /// script
# requires-python = ">=3.11"
# dependencies = ["poise @ git+https://github.com/poise-vlm/poise"]
# ///
"""Train a Poise model on several processes with accelerate alone: to the loop it is one more torch module.

    accelerate launch examples/train_with_accelerate.py --model outputs/own_vlm --data records/train.jsonl

Most people want `accelerate launch -m poise sft ...`, which also resumes, evaluates and writes a card.
"""

import argparse

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from poise import PoiseForConditionalGeneration, PoiseProcessor
from poise.processing import TrainingCollator
from poise.processing.records.record_sources import RecordSource, open_records

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--data", default="scenes")
parser.add_argument("--output", default="outputs/trained")
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--cpu", action="store_true")
arguments = parser.parse_args()

accelerator = Accelerator(cpu=arguments.cpu)
model = PoiseForConditionalGeneration.from_pretrained(arguments.model)
model.freeze_backbones()
processor = PoiseProcessor.from_pretrained(arguments.model)
records = open_records(RecordSource(arguments.data))
loader = DataLoader(records, batch_size=4, shuffle=True, collate_fn=TrainingCollator(processor), drop_last=True)
optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-3)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

model.train()
for _, batch in zip(range(arguments.steps), loader, strict=False):
    loss = model(**batch).loss
    accelerator.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
    accelerator.print(f"loss {accelerator.gather(loss.detach()[None]).mean():.3f}")

accelerator.wait_for_everyone()
if accelerator.is_main_process:
    accelerator.unwrap_model(model).save_pretrained(arguments.output)
    processor.save_pretrained(arguments.output)
