"""When to leave a stream out of a pretrained VLM: measured by what its answers are worth with and without it.

A language model that stays frozen may make less of tags than of a hurt image. Training data tells: answers with both
streams, without either, with an image or tags of another record, and with a blank image. None of it needs a failure
that somebody collected.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers import TrainerCallback

from ...modeling.modeling_vlm_router import RoutedVlm
from ...processing.batching.collators import IGNORED
from ...processing.records.task_record_files import opened_record
from .answer_collator import answer_logits

RECORDS, BATCH = 256, 8


class DecisionCosts(TrainerCallback):
    """Measures them where training ends, before anything is scored; `found` is what it measured."""

    def __init__(self, collator: Any, records: Any):
        self.collator, self.records = collator, records
        self.found: dict[str, float] = {}

    def on_train_end(self, args, state, control, model=None, **kwargs):
        self.found = measure_decision_costs(model, self.collator, self.records)


def measure_decision_costs(model: RoutedVlm, collator: Any, records: Any) -> dict[str, float]:
    """
    Sets `model.route.thresholds` by the probability of right answers on the first records that have tags.

    Returns:
        The mean probabilities by condition, and what was set, `threshold_image` and `threshold_tags`; nothing where
        fewer than two records have tags.
    """
    chosen = []
    for place in range(min(len(records), 4 * RECORDS)):
        record = opened_record(records[place])
        if record.get("tags") and record["image"] is not None:
            chosen.append(record)
        if len(chosen) == RECORDS:
            break
    if len(chosen) < 2:
        return {}
    others = [*chosen[1:], chosen[0]]
    conditions: dict[str, tuple[Sequence[Mapping[str, Any]], tuple[int, int]]] = {
        "both": (chosen, (1, 1)),
        "tags_alone": (chosen, (0, 1)),
        "image_alone": (chosen, (1, 0)),
        "image_blank": ([{**r, "image": Image.new("RGB", r["image"].size, (127, 127, 127))} for r in chosen], (1, 1)),
        "image_of_another": ([{**r, "image": o["image"]} for r, o in zip(chosen, others, strict=True)], (1, 1)),
        "tags_of_another": ([{**r, "tags": o["tags"]} for r, o in zip(chosen, others, strict=True)], (1, 1)),
    }
    training = model.training
    model.eval()
    worth = {name: _probabilities(model, collator, *condition)  # (R,) each
             for name, condition in tqdm(conditions.items(), desc="decision costs", disable=None)}  # fmt: skip
    model.train(training)
    both, alone = worth["both"], (worth["tags_alone"], worth["image_alone"])
    failures = (("image_blank", "image_of_another"), ("tags_of_another",))
    losses = [float((both - without).mean()) for without in alone]
    gains = [min(_least_gain(without, both, worth[name]) for name in names)
             for without, names in zip(alone, failures, strict=True)]  # fmt: skip
    model.route.set_thresholds(losses, gains)
    image, tags = model.route.thresholds.tolist()
    means = {name: float(values.mean()) for name, values in worth.items()}
    return {**means, "threshold_image": image, "threshold_tags": tags}


def _least_gain(alone: torch.Tensor, both: torch.Tensor, failed: torch.Tensor) -> float:
    """
    What leaving out a stream that looks failed gains at least: the lower end of a 95 % interval over records [R]. Half
    of such streams are taken to be only hurt, and a hurt one to be worth the mean of a sound and a failed one.
    """
    gain = alone - (failed + (both - failed) / 4)  # (R,)
    return float(gain.mean() - 1.96 * gain.std() / len(gain) ** 0.5)


@torch.no_grad()
def _probabilities(
    model: RoutedVlm, collator: Any, records: Sequence[Mapping[str, Any]], weights: tuple[int, int]
) -> torch.Tensor:
    """Probability of each whole answer, [R], where every image and its tags have `weights`."""
    found = []
    with model.route.fixed_weights(*weights):
        for start in range(0, len(records), BATCH):
            inputs = {name: value.to(model.device) if torch.is_tensor(value) else value
                      for name, value in collator(records[start : start + BATCH]).items()}  # fmt: skip
            labels = inputs.pop("labels")  # (B, T)
            logits = model(**inputs, use_cache=False).logits  # (B, T, V)
            logits, labels = answer_logits(logits, labels, "decoder_input_ids" in inputs)
            likelihood = logits.float().log_softmax(-1).gather(-1, labels.clamp_min(0)[..., None])[..., 0]  # (B, T)
            found.append(likelihood.masked_fill(labels == IGNORED, 0.0).sum(-1).exp())  # (B,)
    return torch.cat(found).cpu()
