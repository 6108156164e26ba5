"""Which tags the picture denies: `python benchmarks/tag_verification.py outputs/demo/reliability/model`.

Scenes know what is in them, so every tag of theirs is true or invented. Printed per condition: the share of its score
that a true and an invented tag keeps in the mean, and how well the evidence alone tells the two apart (area under the
ROC curve), where the picture is sound.
"""

import argparse

import torch

from poise.evaluation.robustness.conditions import DEMO_CONDITIONS
from poise.modeling.vision_features import encode_image
from poise.processing import GenerationCollator
from poise.training.sft.checkpoints import load_trained

NAMES = ("clean", "prior broken", "tags invented", "tags shuffled", "image blur", "image noise", "image blank",
         "image swapped")  # fmt: skip


def area_under_roc(positive: torch.Tensor, negative: torch.Tensor) -> float:
    """Probability that one of the positive values lies above one of the negative ones."""
    difference = positive[:, None] - negative[None]  # (n, m)
    return ((difference > 0).float() + 0.5 * (difference == 0).float()).mean().item()


@torch.no_grad()
def judged(model, inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Evidence of every tag of a batch, in reading order, and the share of its score that it keeps."""
    router = model.model.router
    features, profile = encode_image(model.model.vision_tower, inputs["pixel_values"], model.config)
    ids, mask, scores = inputs["tag_input_ids"], inputs["tag_attention_mask"].bool(), inputs["tag_scores"]  # (N, L)
    evidence, is_tag, tag_of_token = router.tag_verification.evidence(features[:, -1], ids, mask)  # (N, L) each
    kept = router.read_scores(features[:, -1], profile, ids, mask, scores) / scores.clamp_min(1e-6)  # (N, L)
    kept_by_tag = torch.ones(len(ids), ids.shape[1] + 1).scatter(1, tag_of_token, kept)[:, :-1]  # (N, L)
    return evidence[is_tag], kept_by_tag[is_tag]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model", help="folder of a trained model with tag_verification=true")
    parser.add_argument("--samples", type=int, default=300, help="scenes per condition")
    parser.add_argument("--seed", type=int, default=1, help="of the scenes")
    args = parser.parse_args()
    model, processor = load_trained(args.model)
    if not model.config.verifies_tags:
        raise SystemExit(f"{args.model}: tag_verification is off; train with --tag_verification true")
    collator = GenerationCollator(processor, is_encoder_decoder=model.config.is_encoder_decoder)
    print("| condition | true tags keep | invented tags keep | area under the ROC curve |\n|---|---|---|---|")
    for condition in (condition for name in NAMES for condition in DEMO_CONDITIONS if condition.name == name):
        scenes = condition.scenes(args.samples, args.seed, tasks=("vqa",), question_types=("color",))
        records = [record for record in (scenes[index] for index in range(args.samples)) if record["tags"]]
        evidence, kept, true = [], [], []
        for start in range(0, len(records), 100):
            part = records[start : start + 100]
            inputs, _ = collator(part)
            for found, values in zip((evidence, kept), judged(model, inputs), strict=True):
                found.append(values)
            for record in part:
                shown = {f"{thing['color']} {thing['shape']}" for thing in record["metadata"]["objects"]}
                true += [name in shown for name, _ in record["tags"]]
        is_true, shares, values = torch.tensor(true), torch.cat(kept), torch.cat(evidence)
        cells = [f"{shares[which].mean():.2f} ({int(which.sum())})" for which in (is_true, ~is_true)]
        area = f"{area_under_roc(values[is_true], values[~is_true]):.3f}"
        print(
            f"| {condition.name} | {' | '.join(cells)} | {'-' if condition.stream == 'image' else area} |", flush=True
        )


if __name__ == "__main__":
    main()
