"""Named test conditions over scenes: which split, which stream fails and how badly.

Each condition is a pure function of its settings, so two models are asked exactly the same questions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from poise.processing.scenes import Scenes


@dataclass(frozen=True)
class Condition:
    """
    Args:
        name (`str`): what tables and plots call it.
        split (`str`): a split of [`Scenes`].
        settings (`dict`): further arguments of [`Scenes`].
        stream (`str`): which stream fails: "none", "image" or "tags".
    """

    name: str
    split: str = "prior_broken"
    settings: dict[str, Any] = field(default_factory=dict)
    stream: str = "none"

    def scenes(self, size: int, seed: int = 0, **knobs: Any) -> Scenes:
        """`size` scenes under this condition; `knobs` are arguments of [`Scenes`] that all conditions share."""
        return Scenes(self.split, size=size, seed=seed, **{**knobs, **self.settings})


def _image(name: str, degradation: str, severity: int) -> Condition:
    return Condition(name, settings={"image_degradation": degradation, "severity": severity}, stream="image")


def _tags(name: str, corruption: str, severity: int) -> Condition:
    return Condition(name, settings={"tag_corruption": corruption, "severity": severity}, stream="tags")


# Degraded conditions use the split whose colours contradict the prior: there a right answer must come from a stream
# that still works, and an answer from the prior is always wrong.
DEMO_CONDITIONS: tuple[Condition, ...] = (
    Condition("clean", split="test"),
    Condition("prior broken"),
    _image("image noise", "noise", 4),
    _image("image blur", "blur", 4),
    _image("image occluded", "occlusion", 4),
    _image("image blank", "blank", 5),
    _image("image swapped", "swapped_image", 5),
    _tags("tags removed", "tags_removed", 5),
    _tags("tags invented", "tags_invented", 5),
    _tags("tags shuffled", "tags_shuffled", 5),
)


def condition_named(name: str, conditions: Sequence[Condition] = DEMO_CONDITIONS) -> Condition:
    """The condition of that name.

    Raises:
        ValueError: there is none; the message lists the names.
    """
    for condition in conditions:
        if condition.name == name:
            return condition
    raise ValueError(f"condition={name!r} is not known: choose one of {', '.join(c.name for c in conditions)}")
