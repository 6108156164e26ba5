"""Launch configurations: accelerate reads them all, and a run notices when it was not launched as they ask."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import (
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
    prepare_simple_launcher_cmd_env,
)

from poise.training import first_step_checks as launch_check
from poise.training.first_step_checks import asked_for, check_launch, wrapper_of
from poise.training.run_start import output_lock

CONFIGS = ("cpu_ddp", "single_gpu", "ddp", "fsdp2", "zero2", "zero3", "qlora_fsdp")
WANTED = {
    "cpu_ddp": ("MULTI_GPU", "ddp"),
    "single_gpu": ("NO", None),
    "ddp": ("MULTI_GPU", "ddp"),
    "fsdp2": ("FSDP", "fsdp2"),
    "zero2": ("DEEPSPEED", "zero2"),
    "zero3": ("DEEPSPEED", "zero3"),
    "qlora_fsdp": ("FSDP", "fsdp1"),
}


def path_of(name):
    return Path(launch_check.__file__).parent / "accelerate" / f"{name}.yaml"


def test_every_configuration_is_tested():
    assert sorted(path.stem for path in path_of("ddp").parent.glob("*.yaml")) == sorted(CONFIGS)


def test_every_configuration_has_a_page(repository):
    pages = {path.stem: path.read_text() for path in (repository / "docs" / "at_scale").glob("*.md")}
    assert sorted(pages) == sorted(CONFIGS)
    overview = (repository / "docs" / "training_at_scale.md").read_text()
    for name, page in pages.items():
        assert f"--config_file training/accelerate/{name}.yaml" in page and f"(at_scale/{name}.md)" in overview


@pytest.mark.parametrize("name", CONFIGS)
def test_accelerate_reads_it_and_would_launch_it(name):
    """What the launcher would hand to the processes is what `asked_for` reads back."""
    config = load_config_from_file(str(path_of(name)))
    distributed, wrapper = WANTED[name]
    assert config.distributed_type.value == distributed
    words = ["--config_file", str(path_of(name)), "--main_process_port", "0", "-m", "poise", "sft"]
    args, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ",".join(config.deepspeed_config)  # as the command itself does
        _, environment = prepare_deepspeed_cmd_env(args)
    elif args.use_fsdp or args.multi_gpu:
        environment = prepare_multi_gpu_env(args)
    else:
        _, environment = prepare_simple_launcher_cmd_env(args)
    if config.num_processes > 1:
        assert args.num_processes == config.num_processes
        environment = {**environment, "WORLD_SIZE": str(args.num_processes), "RANK": "0"}  # as torchrun adds
    stage = config.deepspeed_config.get("zero_stage") if config.deepspeed_config else None
    world, found = asked_for(environment, stage)
    assert found == wrapper
    assert world == (config.num_processes if config.num_processes > 1 else None)


def test_quantized_weights_travel_in_the_dtype_of_the_model():
    """FSDP refuses to flatten whole numbers together with floating-point ones."""
    from poise.training.sft import assembly

    make = getattr(assembly, "quantization_config", None)
    if make is None:
        from poise.training.sft.assembly import quantization_config as make
    config = make("nf4", torch.bfloat16)
    assert config.bnb_4bit_quant_storage == torch.bfloat16 == config.bnb_4bit_compute_dtype


LINE = torch.nn.Linear(2, 2)
ONE = SimpleNamespace(world_size=1, device=torch.device("cpu"))


def test_a_plain_run_is_not_bothered():
    check_launch(LINE, ONE, {})
    check_launch(LINE, ONE, {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"})  # left in somebody's shell
    check_launch(LINE, ONE, {"ACCELERATE_USE_CPU": "False"})
    assert wrapper_of(LINE) == "none"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"},
            "MULTI_CPU asked for several processes",
        ),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "num_processes=2 were asked for, but training sees 1"),
        ({"WORLD_SIZE": "1", "RANK": "0", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "on a CPU accelerate"),
        ({"WORLD_SIZE": "1", "RANK": "0", "ACCELERATE_USE_DEEPSPEED": "true"}, "zero was asked for, .* as none"),
    ],
    ids=["multi_cpu", "world_size", "fsdp_on_cpu", "deepspeed"],
)
def test_a_launch_that_is_not_what_was_asked_for_is_refused(environment, message):
    with pytest.raises(ValueError, match=message) as caught:
        check_launch(LINE, ONE, environment)
    assert "\n" not in str(caught.value)


def test_the_wrong_stage_of_zero_is_refused():
    class DeepSpeedEngine(torch.nn.Linear):
        def zero_optimization_stage(self):
            return 2

    engine = DeepSpeedEngine(2, 2)
    environment = {"WORLD_SIZE": "1", "RANK": "0", "ACCELERATE_USE_DEEPSPEED": "true"}
    args = SimpleNamespace(world_size=1, device=torch.device("cpu"), deepspeed_plugin=SimpleNamespace(zero_stage=3))
    with pytest.raises(ValueError, match="zero3 was asked for, but the model is wrapped as zero2"):
        check_launch(engine, args, environment)
    args.deepspeed_plugin.zero_stage = 2
    check_launch(engine, args, environment)


BASE = {"compute_environment": "LOCAL_MACHINE", "num_machines": 1, "num_processes": 2, "mixed_precision": "no",
        "use_cpu": True}  # fmt: skip
LAUNCHES = {
    "multi_cpu": ({"distributed_type": "MULTI_CPU"}, "MULTI_CPU asked for several processes"),
    "fsdp2": ({"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 2}}, "fsdp2 was asked for, but on a CPU"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(LAUNCHES))
def test_launches_that_fail_in_silence_are_refused(name, tmp_path):
    """As the launcher really makes them; two processes that do run together are in test_two_processes.py."""
    config, refused = LAUNCHES[name]
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**BASE, **config}))
    script = str(Path(__file__).parent / "launched_line.py")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(path),
               "--main_process_port", "0", script, str(tmp_path / "run")]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for variable in ("RANK", "WORLD_SIZE", "MASTER_PORT", "MASTER_ADDR"):
        environment.pop(variable, None)
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    text = result.stdout + result.stderr
    assert result.returncode != 0 and refused in text, text[-3000:]


def launched_lock(folder):
    script = str(Path(__file__).parent / "launched_lock.py")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(path_of("cpu_ddp")),
               "--num_processes", "2", "--main_process_port", "0", script, str(folder)]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    for variable in ("RANK", "WORLD_SIZE", "MASTER_PORT"):
        environment.pop(variable, None)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_two_processes_hold_one_lock_and_are_refused_together(tmp_path):
    folder = tmp_path / "run"
    result = launched_lock(folder)
    assert result.returncode == 0, result.stderr[-2000:]
    said = sorted(line for line in result.stdout.splitlines() if line.startswith("rank "))
    (first, owner), (_, other) = (re.findall(r"\d+(?=,|'s)", line) for line in said)
    assert len(said) == 2 and owner == other == first  # the first process's
    assert not folder.exists()  # nothing was written, so that nothing is left
    with output_lock(folder):
        result = launched_lock(folder)
    assert result.returncode != 0
    said = [line for line in result.stdout.splitlines() if line.startswith("rank ")]
    assert len(said) == 1 and f"is in use by process {os.getpid()} on " in said[0], result.stdout + result.stderr
