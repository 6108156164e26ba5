"""One run of the study: train a cell on cached features, then ask it under every condition."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import get_cosine_schedule_with_warmup, set_seed

from ...evaluation.robustness.conditions import Condition
from ...modeling.reliability_router import ReliabilityRouter
from ...processing.scenes.scenes import Scenes
from ..feature_cache.cache import FeatureCache
from ..parameter_groups import count_parameters, optimizer_groups
from ..sft.assembly import assemble, prepare_for_training
from ..sft.ridge_initialization import align_pictures
from .inputs import DegradedScenes, batch_of, frozen_features, token_rows
from .plan import Cell, StudyPlan

WARMUP = 0.05  # share of the steps
MAX_GRAD_NORM = 1.0
EVALUATION_BATCH = 100
VIEWS = {"open": (True, True), "image": (True, False), "tags": (False, True)}  # trusted streams: image, tags
# Evidence of the reliability router, each removed from a trained model by itself.
PARTS = ("typicality", "question", "tags against image", "denial of single tags")
ENTROPY_GATE = "entropy gate"


class StudyInputs:
    """Cached inputs of one prompt: training sets by name, test sets by condition."""

    def __init__(self, plan: StudyPlan, prompt: str, folder: Path):
        cell = Cell("reliability", prompt, "frozen", "clean")  # of all routers this one reads most of the tower
        self.model, self.processor = assemble(plan.recipe_of(cell, plan.seeds[0]))
        self.plan, self.folder = plan, folder
        self.tags: dict[str, list] = {}
        self.opened: dict[str, tuple[FeatureCache, FeatureCache]] = {}

    def training(self, name: str) -> tuple[FeatureCache, FeatureCache]:
        """Inputs of the training called "clean", "degraded" or "unaligned" (clean, too)."""
        return self._open(*self._training_data(name))

    def _training_data(self, name: str) -> tuple[Any, str]:
        plan = self.plan
        scenes = Scenes("train", plan.train_scenes, plan.scene_seed, **plan.scenes)
        key = f"train {plan.scene_seed} {dict(plan.scenes)}"
        if name != "degraded":
            return scenes, key
        with_ = dict(plan.degraded_with)
        return DegradedScenes(scenes, **with_), f"{key} degraded {with_}"

    def tagged_images(self, name: str, count: int) -> Iterator:
        """Features and tags of the first `count` training scenes, as `align_pictures` reads them."""
        if name not in self.tags:
            records = self._training_data(name)[0].__getitems__(range(min(count, self.plan.train_scenes)))
            self.tags[name] = [record["tags"] for record in records]
        features, _ = self.training(name)
        for start in range(0, len(self.tags[name]), EVALUATION_BATCH):
            upto = min(start + EVALUATION_BATCH, len(self.tags[name]))
            rows = [row for row in range(start, upto) if self.tags[name][row]]
            yield features.batch(rows)["vision_features"], [self.tags[name][row] for row in rows]

    def testing(self, condition: Condition) -> tuple[FeatureCache, FeatureCache]:
        """The questions of a condition; scenes keep their prior strength of 0.9 in the split "test"."""
        plan = self.plan
        knobs = {name: plan.scenes[name] for name in ("tasks", "question_types") if name in plan.scenes}
        scenes = condition.scenes(plan.samples, plan.scene_seed, **knobs)
        return self._open(scenes, f"{condition.split} {plan.scene_seed} {knobs} {dict(condition.settings)}")

    def _open(self, data: Any, key: str) -> tuple[FeatureCache, FeatureCache]:
        if key not in self.opened:
            self.opened[key] = (
                frozen_features(self.model, self.processor, data, key, self.folder),
                token_rows(self.model, self.processor, data, key, self.folder),
            )
        return self.opened[key]


def run_cell(plan: StudyPlan, cell: Cell, seed: int, inputs: StudyInputs) -> dict[str, Any]:
    """
    Train one model and measure it.

    Args:
        plan ([`StudyPlan`]), cell ([`Cell`]), seed (`int`): which run.
        inputs ([`StudyInputs`]): of the cell's prompt.

    Returns:
        The cell's settings with `seed`, `steps`, `seconds`, trained `parameters`, the mean `loss` of the last tenth of
        the steps, and `conditions`: by name `accuracy`, `prior` (share of answers that follow the prior),
        `log_likelihood` (of the right answer) and the mean `weights` of the router. `views` has the same for a
        reliability router that does not judge but always trusts what `VIEWS` says: both streams, which is no router but
        stream dropout, or only one, of which the better one is what an oracle would choose; for one that does without
        each of `PARTS`; and for an entropy gate in its place.
    """
    recipe = plan.recipe_of(cell, seed)
    model, processor = assemble(recipe)
    if recipe.model.align_pictures:
        align_pictures(model, processor, inputs.tagged_images(cell.training, recipe.model.align_pictures))
    set_seed(seed)
    trained = prepare_for_training(model, recipe)
    started = time.monotonic()
    losses = train(trained, recipe.learning_rates, inputs.training(cell.training), plan, seed)
    seconds = time.monotonic() - started
    trained.eval()

    def under_all_conditions(answer: "Answer" = likeliest_answers) -> dict[str, Any]:
        return {condition.name: measure(trained, inputs.testing(condition), answer) for condition in plan.conditions}

    rows, views = under_all_conditions(), {}
    if recipe.model.router_type == "reliability":
        for view, trusted in VIEWS.items():
            with router_fixed(trained, *trusted):
                views[view] = under_all_conditions()
        for part in PARTS if cell.prompt == "dynamic" else ():
            with router_without(trained, part):
                views[f"without {part}"] = under_all_conditions()
        views[ENTROPY_GATE] = under_all_conditions(answers_of_the_surer_stream)
    return {
        **asdict(cell),
        "seed": seed,
        "steps": plan.steps,
        "seconds": round(seconds, 1),
        "parameters": sum(count for group, count in count_parameters(trained).items() if group != "total"),
        "loss": round(sum(losses[-plan.steps // 10 :]) / max(1, len(losses[-plan.steps // 10 :])), 4),
        "conditions": rows,
        "views": views,
    }


@contextmanager
def routers_changed(model: torch.nn.Module, change: Callable[[ReliabilityRouter], dict[str, Any]]) -> Iterator[None]:
    """Within this context the reliability routers have other methods, `{"judge": ..., "submodule.method": ...}`."""
    with ExitStack() as changes:
        for router in [module for module in model.modules() if isinstance(module, ReliabilityRouter)]:
            for place, method in change(router).items():
                owner, _, name = place.rpartition(".")
                changes.enter_context(patch.object(router.get_submodule(owner), name, method))
        yield


def router_fixed(model: torch.nn.Module, image: bool, tags: bool) -> AbstractContextManager[None]:
    """Within this context a reliability router does not judge: it trusts these streams, as far as there are any."""

    def fixed(patches, image_profile, tag_inputs, question, is_real):
        has_tags = torch.ones_like(is_real) if tag_inputs is None else tag_inputs[2].any(-1)  # (N,)
        # Never neither: without tags the image stays.
        return torch.stack([~has_tags | image, has_tags & tags], dim=-1).float(), None

    return routers_changed(model, lambda router: {"judge": fixed})


def router_without(model: torch.nn.Module, part: str) -> AbstractContextManager[None]:
    """Within this context a reliability router with a dynamic prompt judges without one of `PARTS`."""

    def change(router: ReliabilityRouter) -> dict[str, Any]:
        judge, evidence = router.judge, router.word_evidence.forward

        def no_denial(*arguments):
            return judge(*arguments)[0], None

        def no_question(patches, image_profile, tags, question, is_real):
            return judge(patches, image_profile, tags, None, is_real)

        def no_tags_shown(patches, tags, question):
            odds, is_tag, *others = evidence(patches, tags, question)
            return odds, torch.zeros_like(is_tag), *others

        changes: dict[str, dict[str, Any]] = {
            "typicality": {"image_typicality.beyond": lambda profiles: torch.zeros_like(profiles[:, 0])},
            "question": {"judge": no_question},
            "tags against image": {"word_evidence.forward": no_tags_shown},
            "denial of single tags": {"judge": no_denial},
        }
        return changes[part]

    return routers_changed(model, change)


def train(
    model: torch.nn.Module,
    learning_rates: dict[str, Any],
    data: tuple[FeatureCache, FeatureCache],
    plan: StudyPlan,
    seed: int,
) -> list[float]:
    """Losses of `plan.steps` steps of AdamW with a cosine schedule; the seed draws the order of the samples."""
    model.train()
    optimizer = torch.optim.AdamW(optimizer_groups(model, learning_rates, 0.0))
    schedule = get_cosine_schedule_with_warmup(optimizer, round(WARMUP * plan.steps), plan.steps)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    generator = torch.Generator().manual_seed(seed)
    order = torch.cat(
        [torch.randperm(len(data[0]), generator=generator)
         for _ in range(-(-plan.steps * plan.batch_size // len(data[0])))]
    )  # fmt: skip
    losses = []
    for step in range(plan.steps):
        rows = order[step * plan.batch_size : (step + 1) * plan.batch_size].tolist()
        batch = batch_of(*data, rows)
        del batch["prior_answer"]
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(float(loss.detach()))
    return losses


Answer = Callable[[torch.nn.Module, dict[str, torch.Tensor], torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]


def likeliest_answers(
    model: torch.nn.Module, batch: dict[str, torch.Tensor], places: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log probabilities (B, V) of what is said at one place (B,) of each row, and the router's weights, (N, 2)."""
    output = model(**batch)
    said = output.logits[torch.arange(len(places)), places].float()  # (B, V)
    return said.log_softmax(-1), output.router_weights


def answers_of_the_surer_stream(
    model: torch.nn.Module, batch: dict[str, torch.Tensor], places: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    The same of an entropy gate in place of the router: each row is answered from the image alone and from the tags
    alone, and the answer of lower entropy is taken.
    """
    alone = []
    for trusted in (VIEWS["image"], VIEWS["tags"]):
        with router_fixed(model, *trusted):
            alone.append(likeliest_answers(model, batch, places)[0])  # (B, V)
    entropy = torch.stack([-(said.exp() * said).sum(-1) for said in alone])  # (2, B)
    by_image = entropy[0] <= entropy[1]  # (B,)
    return torch.where(by_image[:, None], *alone), torch.stack([by_image, ~by_image], dim=-1)


@torch.no_grad()
def measure(
    model: torch.nn.Module, data: tuple[FeatureCache, FeatureCache], answer: Answer = likeliest_answers
) -> dict[str, Any]:
    """Answers to one test set, by what the model finds likeliest as the answer's (only) token."""
    right, prior, likelihood, weights = [], [], [], []
    for start in range(0, len(data[0]), EVALUATION_BATCH):
        batch = batch_of(*data, range(start, min(start + EVALUATION_BATCH, len(data[0]))))
        priors, labels = batch.pop("prior_answer"), batch.pop("labels")  # (B,), (B, T)
        first = (labels != -100).int().argmax(-1)  # (B,) where the answer stands
        logs, routed = answer(model, batch, first - 1)  # (B, V), (N, 2)
        each = torch.arange(len(first))
        truth, said = labels[each, first], logs.argmax(-1)  # (B,), (B,)
        right.append(said == truth)
        prior.append(said == priors)
        likelihood.append(logs[each, truth])
        if routed is not None:
            weights.append(routed)
    return {
        "accuracy": torch.cat(right).float().mean().item(),
        "prior": torch.cat(prior).float().mean().item(),
        "log_likelihood": torch.cat(likelihood).mean().item(),
        "weights": torch.cat(weights).float().mean(0).tolist() if weights else None,
    }
