"""At the first step: do the processes run as the launcher was asked to run them?

Launchers fail in silence. `distributed_type: MULTI_CPU` without mpirun starts one process, however many were asked for;
FSDP on a CPU becomes DDP. Both train on, at another batch size or in another memory than the recipe was written for.
What was asked for stands in the environment that `accelerate launch` and `torchrun` leave behind.
"""

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel

# Names under which a process is told its rank: by torchrun, and by the MPI implementations.
RANK_NAMES = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "MPI_LOCALRANKID", "SLURM_PROCID")
# What accelerate leaves where it starts a single process by itself, and where it expects that one to meet others.
STARTED_ALONE, MEETING_POINT = "ACCELERATE_USE_CPU", ("MASTER_ADDR", "MASTER_PORT")


def wrapper_of(model: torch.nn.Module) -> str:
    """`none`, `ddp`, `fsdp1`, `fsdp2` or `zero0` … `zero3`: what a model is wrapped into."""
    if type(model).__name__ == "DeepSpeedEngine":
        return f"zero{model.zero_optimization_stage()}"
    modules = list(model.modules())
    if any(isinstance(module, FSDPModule) for module in modules):
        return "fsdp2"
    if any(isinstance(module, FullyShardedDataParallel) for module in modules):
        return "fsdp1"
    return "ddp" if any(isinstance(module, DistributedDataParallel) for module in modules) else "none"


def asked_for(environment: Mapping[str, str], deepspeed_stage: int | None = None) -> tuple[int | None, str | None]:
    """
    World size and wrapper that the launcher was asked for; `None` where it did not say.

    Raises:
        ValueError: it was asked for several processes, and started one.
    """
    told = environment.get("WORLD_SIZE")
    if told is None and all(name in environment for name in (STARTED_ALONE, *MEETING_POINT)):
        # It names a meeting point only for several processes; whoever has no rank there is alone.
        if not any(name in environment for name in RANK_NAMES):
            raise ValueError(
                "distributed_type=MULTI_CPU asked for several processes, but without mpirun accelerate starts only "
                "one: use distributed_type: MULTI_GPU with use_cpu: true, as in training/accelerate/cpu_ddp.yaml"
            )
    world = None if told is None else int(told)
    if _is_on(environment, "ACCELERATE_USE_DEEPSPEED"):
        return world, "zero" if deepspeed_stage is None else f"zero{deepspeed_stage}"
    if _is_on(environment, "ACCELERATE_USE_FSDP"):
        return world, f"fsdp{environment.get('FSDP_VERSION', '1')}"
    # A single process may be wrapped or not, it makes no difference.
    return world, "ddp" if world is not None and world > 1 else None


def _is_on(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "").lower() in ("true", "1", "yes")


def check_launch(model: torch.nn.Module, args: Any, environment: Mapping[str, str] = os.environ) -> None:
    """
    Args:
        model: as the training step gets it, wrapped.
        args (`TrainingArguments`): knows the world size and device.

    Raises:
        ValueError: fewer processes, another wrapper or another device than the launcher was asked for.
    """
    plugin = getattr(args, "deepspeed_plugin", None)
    world, wrapper = asked_for(environment, getattr(plugin, "zero_stage", None))
    if world is not None and world != args.world_size:
        raise ValueError(
            f"num_processes={world} were asked for, but training sees {args.world_size}: start it through "
            "`accelerate launch --config_file …` or torchrun, and set no world size by hand"
        )
    found = wrapper_of(model)
    if wrapper is None or found.startswith(wrapper):
        return
    if wrapper.startswith("fsdp") and args.device.type == "cpu":
        raise ValueError(
            f"{wrapper} was asked for, but on a CPU accelerate quietly makes it {found}: use "
            "training/accelerate/cpu_ddp.yaml here, fsdp2.yaml on GPUs"
        )
    raise ValueError(
        f"{wrapper} was asked for, but the model is wrapped as {found}: compare the file given to `accelerate launch "
        "--config_file` with those in training/accelerate"
    )
