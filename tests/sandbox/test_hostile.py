"""Two hundred programs that attack: none passes, none leaves a trace, labels are right; as root and as another user."""

import collections
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import hostile_suite
import pytest

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65_534


def as_nobody(line, *, reading):
    """The command that runs `line` as another user, who may read the folder `reading` and the interpreter.

    Root's home is closed to others, and interpreters and checkouts lie there: the command shows both anyway.
    """
    shown = [str(Path(os.path.realpath(sys.executable)).parent.parent), sys.prefix, str(reading)]
    options, hidden = [], set()
    for path in shown:
        above = [folder for folder in reversed(Path(path).parents)][1:]
        closed = next((folder for folder in above if not folder.stat().st_mode & stat.S_IXOTH), None)
        if closed is None:
            continue
        if closed not in hidden:
            options += ["--perms", "0755", "--tmpfs", str(closed)]
            hidden.add(closed)
        for folder in above[above.index(closed) + 1 :]:
            options += ["--perms", "0755", "--dir", str(folder)]
        options += ["--ro-bind", path, path]
    capabilities = ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    change = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    return [shutil.which("bwrap"), "--dev-bind", "/", "/", *options, *capabilities, *change, *line]


@pytest.fixture(scope="module")
def readable_copy():
    """The sandbox and the programs where everybody may read them."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        target = Path(folder, "codegen2_jax")
        target.mkdir()
        for name in ("__init__.py", "errors.py"):
            shutil.copy(ROOT / "codegen2_jax" / name, target)
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "codegen2_jax" / "sandbox", target / "sandbox", ignore=ignored)
        shutil.copytree(hostile_suite.FOLDER, Path(folder, "hostile"))
        shutil.copy(hostile_suite.__file__, folder)
        subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.parametrize("user", ["self", "nobody"])
def test_no_hostile_program_passes_or_leaves_a_trace(user, isolated, readable_copy):
    line = [sys.executable, str(readable_copy / "hostile_suite.py"), "2"]
    if user == "nobody":
        if os.geteuid() != 0:
            pytest.skip("only root can become another user")
        if shutil.which("setpriv") is None:
            pytest.skip("setpriv is not installed")
        line = as_nobody(line, reading=readable_copy)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(readable_copy)}
    done = subprocess.run(line, env=environment, cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["uid"] == (NOBODY if user == "nobody" else os.getuid())
    assert found["traces"] == []
    programs = hostile_suite.load()
    assert len(found["verdicts"]) == len(programs)
    wrong = [
        f"{program.number} {program.name}: {verdict['outcome']} ({verdict['detail']}), not {program.outcomes}"
        for program, verdict in zip(programs, found["verdicts"], strict=True)
        if verdict["outcome"] not in program.outcomes
    ]
    assert not wrong, "\n".join(wrong)
    assert all(verdict["isolated"] for verdict in found["verdicts"])
    texts = [verdict["detail"] for verdict in found["verdicts"]]
    assert all(text.isprintable() and len(text) < 500 for text in texts), "a detail goes to terminals"


def test_the_programs_cover_the_classes():
    programs = hostile_suite.load()
    assert len(programs) >= 190
    assert {program.number for program in programs} == set(range(1, 48))
    assert not [program.name for program in programs if "passed" in program.outcomes or "infra" in program.outcomes]
    names = collections.Counter(program.name for program in programs)
    assert max(names.values()) == 1, names.most_common(1)
