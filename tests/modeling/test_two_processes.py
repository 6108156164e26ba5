"""Two processes see one stream: the same statistics, and no waiting for one another on a batch of text alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

# Each rank trains one step on its own batch under DDP, rank 1 on text alone, and writes gradients and statistics.
SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from tiny_models import Sample, batch_of, tiny_model

rank, folder = int(sys.argv[2]), sys.argv[3]
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
model = tiny_model(router_type="reliability", stream_dropout=0.0).train()
model.freeze_backbones()
parallel = torch.nn.parallel.DistributedDataParallel(model)
batches = [
    [[Sample(images=(seed,)) for seed in range(6)], [Sample(images=())]],
    [[Sample(images=(6, 7), tags=(True, False))], [Sample(images=(seed,)) for seed in range(8, 13)]],
]
for step in batches:
    parallel(**batch_of(model, step[rank], labels=True)).loss.backward()
gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
torch.save({"gradients": gradients, "statistics": model.model.router.state_dict()}, f"{folder}/rank{rank}.pt")
"""


def test_statistics_are_shared_and_text_alone_holds_nobody_up(tmp_path):
    from tiny_models import Sample, batch_of, tiny_model

    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent.parent / "models")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in range(2):
        arguments = [*command, str(rank), str(tmp_path)]
        processes.append(subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        for process in processes:
            _, errors = process.communicate(timeout=500)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in processes:
            process.kill()
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    for kind in ("gradients", "statistics"):
        for name, value in ranks[0][kind].items():
            assert value is not None, name
            assert torch.equal(value, ranks[1][kind][name]), name

    alone = tiny_model(router_type="reliability", stream_dropout=0.0).train()
    seeds = [*((seed,) for seed in range(6)), (6, 7), *((seed,) for seed in range(8, 13))]
    samples = [Sample(images=s, tags=(True, False) if len(s) == 2 else None) for s in seeds]
    alone(**batch_of(alone, samples, labels=True))
    for name, value in alone.model.router.state_dict().items():
        torch.testing.assert_close(ranks[0]["statistics"][name], value, rtol=1e-3, atol=1e-3, msg=name)
