"""Who should yield when picture and tags disagree: `python benchmarks/disagreement.py outputs/demo/reliability/model`.

The same trained model with the question as an arbiter, if it was trained with one, and under several fixed values of
`image_trust`: right answers where the picture is another one's, where the tags are false, and where both are sound.
"""

import argparse

from poise.evaluation.robustness.conditions import Condition, evaluate_conditions
from poise.training.sft.checkpoints import load_trained

CONDITIONS = (
    Condition("prior broken"),
    Condition("image swapped", settings={"image_degradation": "swapped_image", "severity": 5}),
    Condition("tags invented", settings={"tag_corruption": "tags_invented", "severity": 5}),
    Condition("tags adversarial", settings={"tag_corruption": "tags_adversarial", "severity": 5}),
)
TRUST = (None, 0.1, 0.5, 0.9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder of a trained model with router_type=reliability")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    model, processor = load_trained(args.model)
    names = [condition.name for condition in CONDITIONS]
    print("| who decides | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
    router = model.model.router
    asked = ["question"] if router.arbiter is not None else []
    for judge in (*asked, *TRUST):
        if judge != "question":
            router.arbiter, router.image_trust = None, judge
        rows = evaluate_conditions(
            model, processor, CONDITIONS, args.samples, args.seed, report=lambda *_: None, question_types=("color",)
        )
        name = judge if judge == "question" else f"image_trust={judge}"
        print(f"| {name} | " + " | ".join(f"{row['accuracy']:.3f}" for row in rows) + " |", flush=True)


if __name__ == "__main__":
    main()
