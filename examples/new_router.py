# /// script
# requires-python = ">=3.11"
# dependencies = ["poise @ git+https://github.com/poise-vlm/poise"]
# ///
"""Write a router of your own: one class, one line, and everything that trains and measures routers takes it.

    python examples/new_router.py --steps 200

This one trusts the stream whose tokens vary more. In the library a router is a file in modeling/ and a line in
modeling/information_router.py, and `--router_type variance` names it everywhere.
"""

import argparse
from importlib.resources import files

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from poise import PoiseForConditionalGeneration, PoiseProcessor
from poise.modeling.information_router import ROUTERS
from poise.modeling.streams import Streams
from poise.processing import Scenes, TrainingCollator


class VarianceRouter(nn.Module):
    """`streams.image` [N, P, D] and `streams.text` [N, K, D] → the same, scaled by weights [N, 2] that sum to 2."""

    def __init__(self, config):
        super().__init__()
        self.sharpness = nn.Parameter(torch.zeros(()))  # at zero both weights are 1: training starts at the identity

    def forward(self, streams: Streams):
        spread = torch.stack([streams.image.var(1).mean(-1), streams.text.var(1).mean(-1)], dim=-1)  # (N, 2)
        weights = 2 * (self.sharpness * spread.clamp_min(1e-6).log()).softmax(-1)  # (N, 2)
        scale = weights.to(streams.image.dtype)[..., None, None]  # (N, 2, 1, 1)
        return streams.routed(streams.image * scale[:, 0], streams.text * scale[:, 1]), weights


ROUTERS["variance"] = VarianceRouter

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--output", default="outputs/new_router")
arguments = parser.parse_args()

tiny = files("poise.training") / "backbones"  # the demo's, which are part of the package
backbones = {"vision": str(tiny / "vision"), "text": str(tiny / "causal_lm"), "tag_encoder": str(tiny / "tag_encoder")}
model = PoiseForConditionalGeneration.from_backbones(**backbones, router_type="variance", soft_prompt_length=8)
processor = PoiseProcessor.from_backbones(**backbones, config=model.config)
settings = TrainingArguments(
    arguments.output, max_steps=arguments.steps, learning_rate=4e-3, per_device_train_batch_size=16,
    remove_unused_columns=False, report_to="none", save_strategy="no", use_cpu=True,
)  # fmt: skip
records = Scenes("train", size=2000, tasks=["vqa"])
Trainer(model, settings, train_dataset=records, data_collator=TrainingCollator(processor)).train()
print(f"sharpness {model.model.router.sharpness.item():+.3f}: above zero it trusts what varies more")
