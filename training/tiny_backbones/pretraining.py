"""The loop that pretrains every tiny backbone: AdamW, warm-up, cosine, a progress bar. Seeded; runs on the CPU. And the
linear probe that tells what a pretrained one knows.
"""

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from tqdm.auto import tqdm

Batch = TypeVar("Batch")
WEIGHT_DECAY = 0.01
WARMUP = 0.05  # share of the steps


def pretrain(
    modules: list[torch.nn.Module],
    loss_of: Callable[[Batch], torch.Tensor],
    batches: Iterator[Batch],
    steps: int,
    learning_rate: float,
    name: str,
) -> float:
    """Minimizes `loss_of(batch)` over `steps` batches; returns the mean loss of the last 50.

    Args:
        modules: what learns; left in evaluation mode.
        loss_of: maps a batch to a scalar loss.
        batches: endless.
        learning_rate: of AdamW with betas (0.9, 0.98), where warm-up ends; it falls to zero along a cosine.
        name: words before the progress bar.
    """
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))
    rise = max(1, round(WARMUP * steps))
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 1 / rise, total_iters=rise),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - rise)),
        ],
        milestones=[rise],
    )
    for module in modules:
        module.train()
    recent: list[float] = []
    with tqdm(total=steps, desc=name, unit="step", mininterval=2) as bar:
        for _ in range(steps):
            loss = loss_of(next(batches))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            recent = [*recent[-49:], loss.item()]
            bar.set_postfix(loss=f"{sum(recent) / len(recent):.3f}", refresh=False)
            bar.update()
    for module in modules:
        module.eval()
    return sum(recent) / len(recent)


def linear_probe(fitted: torch.Tensor, targets: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    """
    What a linear reader with a bias, a ridge regression from features (N, D) to targets (N, C) in closed form, says of
    other features (M, D): (M, C).
    """
    fitted, asked = (torch.nn.functional.pad(x.double(), (0, 1), value=1.0) for x in (fitted, asked))  # (·, D + 1)
    gram = fitted.T @ fitted + 1e-2 * torch.eye(fitted.shape[1], dtype=fitted.dtype)
    return asked @ torch.linalg.solve(gram, fitted.T @ targets.double())
