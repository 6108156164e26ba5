"""Task metrics. Each module named in `METRICS` is one `evaluate.Metric`, loaded by path:

evaluate.load(metric_path("vqa_accuracy")).compute(predictions=..., references=...)
"""

from difflib import get_close_matches
from pathlib import Path

METRICS = (
    "captions",
    "vqa_accuracy",
    "pope",
    "multiple_choice",
    "grounding_accuracy",
    "zero_shot_classification",
    "retrieval_recall",
    "triplet_cosine",
)


def metric_path(name: str) -> str:
    """Path that `evaluate.load` takes, needing no network.

    Raises:
        ValueError: there is no such metric.
    """
    if name not in METRICS:
        near = get_close_matches(name, METRICS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"name={name!r} is no metric: choose one of {', '.join(METRICS)}.{hint}")
    return str(Path(__file__).parent / f"{name}.py")
