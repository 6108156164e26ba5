"""Commands that the documents tell people to type exist, and the Makefile does what CI relies on."""

import re
import subprocess
from pathlib import Path

import pytest

from poise.command_line import COMMANDS

REPOSITORY = Path(__file__).resolve().parent.parent.parent
DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")])
MAKEFILE = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, flags=re.MULTILINE))


def code_of(document: Path) -> str:
    """Everything that a document sets as code, one piece a line."""
    text = document.read_text(encoding="utf-8")
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return "\n".join([*blocks, *re.findall(r"`([^`\n]+)`", text)])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documented_commands_exist(document):
    code = code_of(document)
    assert set(re.findall(r"^make ([a-z-]+)", code, flags=re.MULTILINE)) <= TARGETS
    assert set(re.findall(r"^poise ([a-z][a-z-]*)", code, flags=re.MULTILINE)) <= set(COMMANDS)


def test_the_readme_shows_demo_and_test():
    assert {"make demo", "make test"} <= {
        line.partition("#")[0].strip() for line in code_of(REPOSITORY / "README.md").splitlines()
    }


def test_folders_of_the_demo_are_those_that_it_leaves():
    from poise.commands.demo import ROUTERS

    runs = [f"{router}{part}" for router in ROUTERS for part in ("", "/model")]
    scenes = [f"questions/scene_{number}.png" for number in range(3)]
    left = {f"outputs/demo/{name}" for name in (*runs, *scenes, "published", "report.png", "results.json")}
    sources = [*DOCUMENTS, *REPOSITORY.glob("poise/**/*.py"), *REPOSITORY.glob("examples/*.py")]
    for source in sources:
        named = re.findall(r"outputs/demo/\w[\w./]*\w", source.read_text(encoding="utf-8"))
        assert set(named) <= left, source.name


def test_every_shipped_recipe_is_named_by_the_help_of_its_stage():
    from poise.commands import train

    stages = (train.SFT, train.ALIGN, train.TAG_ENCODER, train.PREFERENCE)
    named = {word for stage in stages for word in re.findall(r"\w+", stage.shipped.partition(" shipped one: ")[2])}
    recipes = {path.stem for path in (REPOSITORY / "training" / "recipes").glob("*.yaml")}
    assert recipes - {"study"} == named & recipes  # which `poise study` reads


def test_links_between_documents_lead_somewhere():
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_every_make_target_is_explained_and_runs_nothing_unexpected():
    shown = subprocess.run(["make", "--no-print-directory", "help"], cwd=REPOSITORY, capture_output=True, text=True)
    explained = set(re.findall(r"^make ([a-z-]+)", shown.stdout, flags=re.MULTILINE))
    assert TARGETS - {"help"} == explained


def test_ci_runs_fast_tests_slow_tests_and_lint():
    """Each in a line of its own that remembers a failure, so that a later success cannot hide it."""
    lines = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    for command in ("make lint", "make test-slow", "make test"):
        (line,) = [line for line in lines if f"{command} ||" in line and not line.startswith("#")]
        assert "status=1" in line
    assert lines[-1] == "exit $status"


def test_constraints_pin_every_declared_dependency():
    import tomllib

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    pinned = {}
    for line in (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            pinned[canonicalize_name(requirement.name)] = str(requirement.specifier).removeprefix("==")
    for requirement in map(Requirement, declared):
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not in constraints.txt"
        assert requirement.specifier.contains(version), f"{requirement} excludes the tested {version}"
        assert "+" not in version, f"{requirement.name}=={version} is a build that only one index has"
