"""The wheel carries what a run needs and works away from the checkout; the written promises agree with one another."""

import configparser
import importlib.metadata
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGED = ("codegen2_jax", "tasks", "gin_configs")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from a copy of the sources, so that the checkout stays clean."""
    directory = tmp_path_factory.mktemp("wheel")
    sources = directory / "sources"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in PACKAGED:
        shutil.copytree(ROOT / name, sources / name, ignore=ignored)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources / name)
    line = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", directory, sources]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    [built] = directory.glob("*.whl")
    return built


def test_the_wheel_carries_gin_files_weights_and_licence(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    data = ("codegen2_jax/pretrained/**/*", "codegen2_jax/sandbox/launchers/*")
    for pattern in ("gin_configs/**/*.gin", *data, "codegen2_jax/**/*.py", "tasks/**/*.py"):
        expected = {path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern) if path.is_file()}
        expected = {name for name in expected if "__pycache__" not in name}
        assert expected <= names, f"missing: {sorted(expected - names)}"
    assert "gin_configs/pp_tf.gin" in names
    assert any(name.endswith("/LICENSE") for name in names)
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == set(PACKAGED), "nothing but the three packages is installed"


def test_the_wheel_works_away_from_the_checkout(wheel, tmp_path, program_environment):
    installed = tmp_path / "installed"
    line = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-compile", "--target", str(installed), str(wheel)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    environment = program_environment | {"PYTHONPATH": str(installed)}
    program = "import codegen2_jax as a, gin_configs as b, tasks as c; print(a.__file__, b.__file__, c.__file__)"
    for line, expected in (
        (["-c", program], f"{installed}/codegen2_jax"),
        (["-m", "codegen2_jax.train", "--gin_file=pp_tf.gin", "--print_config"], "STREAM = 'pytask_cl'"),
    ):
        done = subprocess.run([sys.executable, *line], env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout and str(ROOT) not in done.stdout


@pytest.fixture(scope="module")
def setup_cfg():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def names_of(requirements: str) -> set[str]:
    """The normalised project names of a requirement list."""
    lines = (line.strip() for line in requirements.splitlines())
    found = (re.match(r"[A-Za-z0-9._-]+", line)[0] for line in lines if line and not line.startswith("#"))
    return {re.sub(r"[-_.]+", "-", name).lower() for name in found}


def closure(names: set[str]) -> set[str]:
    """All that these installed projects require, without extras."""
    seen, pending = set(), set(names)
    while pending:
        name = pending.pop()
        seen.add(name)
        try:
            requirements = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # not for this platform
        pending |= names_of("\n".join(line for line in requirements if "extra ==" not in line)) - seen
    return seen


def test_a_core_install_brings_neither_tensorflow_nor_torch(setup_cfg):
    core = names_of(setup_cfg["options"]["install_requires"])
    assert {"jax", "flax", "optax", "grain", "gin-config"} <= core
    everything = closure(core)
    assert "scipy" in everything, "the walk along the requirements found nothing"
    assert not everything & {"tensorflow", "torch", "seqio", "transformers", "tensorflow-datasets", "clu"}


def test_the_extras_are_there(setup_cfg):
    extras = setup_cfg["options.extras_require"]
    assert {"seqio", "tpu", "cuda", "cuda12", "eval", "hf", "report", "test"} <= set(extras)
    assert "torch==2.13.0" in extras["test"]
    assert {"seqio", "tensorflow", "tensorflow-datasets"} <= names_of(extras["seqio"])


def test_constraints_pin_the_tested_environment(setup_cfg):
    """Every constraint is one exact version, without a local part, and the one that these tests run on."""
    lines = [line.strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pins = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins.items()}
    assert not [version for version in pins.values() if "+" in version]
    needed = names_of(setup_cfg["options"]["install_requires"])
    for extra in ("seqio", "eval", "hf", "report", "test"):
        needed |= names_of(setup_cfg["options.extras_require"][extra])
    missing = needed - set(pins) - {"codegen2-jax"}
    assert not missing, f"not pinned: {sorted(missing)}"
    if sys.version_info[:2] == (3, 11):
        unpinned = closure(needed - {"codegen2-jax"}) - set(pins)
        installed = {re.sub(r"[-_.]+", "-", item.name).lower() for item in importlib.metadata.distributions()}
        assert not unpinned & installed - {"pip", "codegen2-jax"}, "the environment has more than constraints.txt says"


def test_the_readme_and_the_checks_run_the_same_tests():
    script = (ROOT / ".ci" / "run").read_text()
    readme = (ROOT / "README.md").read_text()
    [command] = re.findall(r"^(python -m pytest.*)$", script, re.MULTILINE)
    assert re.search(rf"(^|&& ){re.escape(command)}$", readme, re.MULTILINE), f"README.md has no line '{command}'."
    [install] = re.findall(r"pip install .*(-c constraints\.txt -e '\.\[test\]')$", script, re.MULTILINE)
    assert install in readme, f"README.md does not install with {install}."
    assert os.stat(ROOT / ".ci" / "run").st_mode & stat.S_IXUSR


def test_python_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["requires-python"] == ">=3.11"
    assert project["tool"]["ruff"]["line-length"] == 120
