"""What the router did: the weight it gave to each stream, image by image."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...processing import GenerationCollator
from ...processing.degradations.degradations import DEGRADATION_SETS, DEGRADATION_STREAMS, check_degradation
from ..evaluator import Evaluator, Record, Row, groups_of, image_group
from ..intervals import estimate
from ..probing.parts import model_parts
from ..probing.prompt_reading import read_prompts
from .degraded_records import CLEAN, DegradedRecords


@torch.no_grad()
def router_weights(model: Any, processor: Any, records: Sequence[Any], batch_size: int = 64) -> torch.Tensor | None:
    """
    Weights of the image stream and of the text stream for every record, (n, 2), or `None` without a router.

    Args:
        model: a Poise model, or a [`RoutedVlm`], in evaluation mode.
        processor: made for it.
        records (`Sequence`): task records with images.
        batch_size (`int`, *optional*, defaults to 64): records per forward pass.
    """
    if model_parts(model).is_routed:
        return torch.cat([_routed_weights(model, processor, record) for record in records])
    collator = GenerationCollator(processor, is_encoder_decoder=model.config.is_encoder_decoder)
    found = []
    for start in range(0, len(records), batch_size):
        inputs, _ = collator([records[index] for index in range(start, min(start + batch_size, len(records)))])
        inputs = inputs.to(model.device)
        if model.config.is_encoder_decoder:
            begin = model.config.text_config.decoder_start_token_id
            inputs["decoder_input_ids"] = torch.full(
                (len(inputs["input_ids"]), 1), begin, device=model.device
            )  # (B, 1)
        weights = model(**inputs, logits_to_keep=1).router_weights  # (B, 2)
        if weights is None:
            return None
        found.append(weights.float().cpu())
    return torch.cat(found)  # (n, 2)


def _routed_weights(model: Any, processor: Any, record: Any) -> torch.Tensor:
    """What a [`RoutedVlm`] weighs one image with, (1, 2): of a tiled one the mean over its tiles."""
    tags = [record.get("tags") or []]
    prompts = read_prompts(model_parts(model), processor, [record["image"]], [record.get("question") or "?"], tags)
    assert prompts.features is not None  # made by the router
    weights: torch.Tensor = model.router_weights
    return weights.float().mean(0, keepdim=True).cpu()


def image_trust(model: Any, processor: Any, image: Any, question: str, tags: Sequence[Any] = ()) -> float | None:
    """
    How far a model's reliability router trusts an image, 0 … 1; `None` where there is no such router.

    Below [`DISTRUSTED`] it is unlike the images that the router has seen.
    """
    if getattr(model.config, "router_type", None) != "reliability":
        return None
    record = {"id": "0", "task": "vqa", "image": image, "question": question, "tags": list(tags)}
    weights = router_weights(model, processor, [record])
    return None if weights is None else float(weights[0, 0])


@dataclass(eq=False)
class RouterByCondition(Evaluator):
    """The router's weights with nothing degraded and under each degradation of image and tags.

    Keys of the result: `CONDITION_image_weight` and `CONDITION_text_weight` with `_low` and `_high`, where a condition
    is `clean` or the name of a degradation; `samples`.

    Args:
        degradations (`Sequence[str]`, *optional*): by default all of the image and of the tags.
        severity (`int`, *optional*, defaults to 4)
        degradation_seed (`int`, *optional*, defaults to 0)
        **options: of [`Evaluator`].

    Raises:
        ValueError: an unknown degradation or severity; or, when called, a model without a router.
    """

    primary_metric = f"{CLEAN}_image_weight"
    depends_on = ("degradations", "severity", "degradation_seed")

    degradations: Any = None  # names; by default as the docstring says
    severity: int = 4
    degradation_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        standard = [name for name in DEGRADATION_SETS["standard"] if DEGRADATION_STREAMS[name] != "question"]
        self.degradations = tuple(standard if self.degradations is None else self.degradations)
        for name in self.degradations:
            check_degradation(name, self.severity)

    def describe(self) -> str:
        return "router weights"

    def __call__(self, model: Any, processor: Any, records: Iterable[Record]) -> dict[str, float]:
        if not has_router(model):
            raise ValueError(
                f"model={type(model).__name__} has no information router: give a model whose router_type is not 'none'."
            )
        degraded = DegradedRecords(records, self.degradations, (self.severity,), self.degradation_seed)
        return super().__call__(model, processor, degraded)

    def row(self, record: Record) -> Row | None:
        if record["cell"] is None or record.get("image") is None:
            return None
        return {"id": str(record["id"]), "degradation": record["cell"]["degradation"], **image_group(record)}

    def predict(self, model: Any, processor: Any, records: Sequence[Record], rows: Sequence[Row]) -> None:
        weights = router_weights(model, processor, records, len(records))  # (B, 2)
        assert weights is not None
        for row, pair in zip(rows, weights.tolist(), strict=True):
            row["weights"] = [round(weight, 5) for weight in pair]

    def score(self, rows: list[Row]) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for name in (CLEAN, *self.degradations):
            own = [row for row in rows if row["degradation"] == name]
            for place, stream in enumerate(("image", "text") if own else ()):
                weights = [row["weights"][place] for row in own]
                metrics |= estimate(weights, groups=groups_of(own)).flat(f"{name}_{stream}_weight")
        return {**metrics, "samples": float(sum(row["degradation"] == CLEAN for row in rows))}


def has_router(model: Any) -> bool:
    """Whether a model routes between its streams."""
    return getattr(model.config, "router_type", "none") != "none"
