"""`import poise` registers with transformers' Auto classes, whatever is imported first, in every kind of process."""

import json
import subprocess
import sys
import threading

import pytest

from poise import auto_registration
from poise.auto_registration import AutoRegistration

# The last line of every script: which classes the Auto classes choose for a folder, and whether the finder has left.
REPORT = """
import json, sys
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor
autos = AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor
loaded = [type(auto.from_pretrained(sys.argv[1])) for auto in autos]
waiting = [finder for finder in sys.meta_path if type(finder).__name__ == "AutoRegistration"]
print(json.dumps([[f"{kind.__module__}.{kind.__name__}" for kind in loaded], len(waiting)]))
"""
EXPECTED = [
    [
        "poise.modeling.configuration_poise.PoiseConfig",
        "poise.modeling.modeling_poise.PoiseModel",
        "poise.modeling.modeling_poise.PoiseForConditionalGeneration",
        "poise.modeling.modeling_poise.PoiseForConditionalGeneration",
        "poise.processing.processing_poise.PoiseProcessor",
    ],
    0,
]

# Each begins a process in another way. The ones that matter most import a transformers module which imports the Auto
# classes before it is whole itself.
BEGINNINGS = {
    "poise-first": "import poise",
    "transformers-first": "from transformers import AutoModelForImageTextToText, AutoProcessor\nimport poise",
    "only-config-first": "from transformers import AutoConfig\nimport poise",
    "a-half-imported-module-first": "import poise\nimport transformers.modeling_layers",
    "trainer-first": "import poise\nfrom transformers import Trainer",
    "only-poise.processing": "import poise.processing.processing_poise",
}


# Every beginning needs a process that has imported nothing of ours. They are forked off one that holds the libraries
# below, for these take most of the time.
FORKS = """
import contextlib, importlib, json, os, sys
import PIL.Image, huggingface_hub, safetensors.torch, accelerate
import torch._dynamo, torch.distributed.tensor, torch.distributed.checkpoint
for name in ("scipy.optimize", "sklearn.metrics"):  # transformers uses them where they are installed
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
beginnings, report = json.loads(sys.argv[2])
for name, beginning in beginnings.items():
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        print(name, end=" ")
        exec(beginning + report, {})
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.slow
def test_auto_classes_load_a_poise_folder_however_the_process_began(poise_folder):
    command = [sys.executable, "-c", FORKS, str(poise_folder), json.dumps([BEGINNINGS, REPORT])]
    result = subprocess.run(command, capture_output=True, text=True)
    lines = dict(line.split(" ", 1) for line in result.stdout.splitlines() if line.split(" ", 1)[0] in BEGINNINGS)
    assert {name: json.loads(line) for name, line in lines.items()} == dict.fromkeys(BEGINNINGS, EXPECTED), (
        result.stderr[-3000:]
    )


def test_auto_classes_know_poise_in_this_process(poise_folder):
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    import poise

    assert type(AutoConfig.from_pretrained(poise_folder)) is poise.PoiseConfig
    assert type(AutoModelForImageTextToText.from_pretrained(poise_folder)) is poise.PoiseForConditionalGeneration
    assert type(AutoProcessor.from_pretrained(poise_folder)) is poise.PoiseProcessor
    assert not any(isinstance(finder, AutoRegistration) for finder in sys.meta_path)


@pytest.mark.slow
def test_a_spawned_process_knows_poise(poise_folder, tmp_path):
    script = tmp_path / "spawning.py"
    script.write_text(
        "import multiprocessing, sys\nimport poise\n\n"
        "def load(folder):\n"
        "    from transformers import AutoModelForMultimodalLM\n"
        "    return type(AutoModelForMultimodalLM.from_pretrained(folder)).__name__\n\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(pool.apply(load, [sys.argv[1]]))\n"
    )
    command = [sys.executable, str(script), str(poise_folder)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.stdout.split() == ["PoiseForConditionalGeneration"], result.stderr[-3000:]


@pytest.mark.slow
def test_a_process_of_accelerate_launch_knows_poise(poise_folder, tmp_path):
    script = tmp_path / "launched.py"
    script.write_text("import poise" + REPORT)
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "1",
        script,
        poise_folder,
    ]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads(result.stdout.splitlines()[-1]) == EXPECTED


# The finder itself, on modules made for it.


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """A package `poise_watched` with modules that import each other, watched by a finder; returns (finder, calls)."""
    package = tmp_path / "poise_watched"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "auto.py").write_text("NAME = 'auto'\n")
    (package / "layers.py").write_text("from poise_watched.auto import NAME\nWHOLE = True\n")
    (package / "other.py").write_text("")
    (package / "broken.py").write_text("from poise_watched.auto import NAME\nraise RuntimeError('broken')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(auto_registration, "WATCHED_PACKAGES", ("poise_watched",))
    calls = []

    def register():
        layers = sys.modules.get("poise_watched.layers")
        calls.append(None if layers is None else hasattr(layers, "WHOLE"))

    finder = AutoRegistration({"poise_watched.auto": register})
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    yield finder, calls
    for name in [name for name in sys.modules if name.startswith("poise_watched")]:
        del sys.modules[name]


def test_it_waits_for_the_outermost_import(watched):
    finder, calls = watched
    import poise_watched.layers  # noqa: F401

    assert calls == [True]  # `layers` was whole when its Auto class was told
    assert finder.pending == {} and finder not in sys.meta_path


def test_it_registers_what_is_imported_already(watched):
    finder, calls = watched
    finder.pending = {}
    import poise_watched.auto  # noqa: F401

    finder.pending = {"poise_watched.auto": lambda: calls.append("now")}
    finder.register_what_is_ready()
    assert calls == ["now"]


def test_an_import_that_fails_is_not_its_business(watched):
    finder, calls = watched
    with pytest.raises(RuntimeError, match="broken"):
        import poise_watched.broken  # noqa: F401
    assert calls == []
    import poise_watched.layers  # noqa: F401

    assert calls == [True]


def test_a_registration_that_fails_is_tried_again(watched):
    finder, calls = watched

    def fail():
        raise ImportError("the model's file is broken")

    working, finder.pending["poise_watched.auto"] = finder.pending["poise_watched.auto"], fail
    with pytest.raises(ImportError, match="file is broken"):
        import poise_watched.layers  # noqa: F401
    finder.pending["poise_watched.auto"] = working
    import poise_watched.layers  # noqa: F401

    assert calls == [True]


def test_the_source_of_a_watched_module_can_still_be_read(watched):
    import importlib.resources
    import inspect

    import poise_watched.auto

    assert inspect.getsource(poise_watched.auto) == "NAME = 'auto'\n"
    assert "exec_module" not in vars(poise_watched.auto.__spec__.loader)
    assert importlib.resources.files("poise_watched").joinpath("auto.py").is_file()


def test_looking_for_a_module_twice_and_importing_it_registers_once(watched):
    import importlib.util

    finder, calls = watched
    assert importlib.util.find_spec("poise_watched.auto") is not None
    assert importlib.util.find_spec("poise_watched.auto") is not None
    assert importlib.util.find_spec("poise_watched.nothing") is None
    import poise_watched.auto  # noqa: F401

    assert calls == [None]


def test_a_thread_does_not_wait_for_one_that_registers(watched):
    finder, calls = watched
    inside, leave = threading.Event(), threading.Event()

    def register():
        inside.set()
        assert leave.wait(timeout=30)
        calls.append("registered")

    finder.pending = {"poise_watched.auto": register}

    def import_auto():
        import poise_watched.auto  # noqa: F401

    first = threading.Thread(target=import_auto)
    first.start()
    assert inside.wait(timeout=30)
    import poise_watched.other  # noqa: F401

    assert calls == []
    leave.set()
    first.join(timeout=30)
    assert not first.is_alive() and calls == ["registered"] and finder.pending == {}
