"""Right programs pass whatever they return, wrong ones fail, and the label says what happened."""

import pytest

from codegen2_jax.errors import UserError
from codegen2_jax.sandbox.programs import OUTCOMES, Limits, Program, Verdict
from codegen2_jax.sandbox.runner import Sandbox

RIGHT = {
    "plain": ("def f(a, b):\n    return a + b", "assert f(1, 2) == 3"),
    "check": ("def f(a):\n    return a", "def check(candidate):\n    assert candidate(1) == 1"),
    "check, called": ("def f(a):\n    return a", "def check(candidate):\n    assert candidate(1) == 1\ncheck(f)"),
    "named arguments": ("def f(a, *, b=2, **c):\n    return a + b + len(c)", "assert f(1, b=1, c=1, d=1) == 4"),
    "all types": (
        "def f(a):\n    return a",
        "import collections\n"
        "for value in [None, True, 0, -1, 2**100, -(2**70), 0.1, 1e308, 'x', '\\ud800', b'x', bytearray(b'y'), 1j,"
        " (1, (2,)), [1, [2]], {1: 'a', (1, 2): None, None: 3}, {1, 2}, frozenset({3}), range(1, 9, 2), int,"
        " collections.Counter('aab'), collections.OrderedDict(a=1), collections.deque([1, 2])]:\n"
        "    assert f(value) == value and type(f(value)) is type(value), value\n"
        "assert str(f(-0.0)) == '-0.0' and f(float('nan')) != f(float('nan')) and f(float('inf')) == float('inf')",
    ),
    "in place": (
        "def f(items):\n    items.sort()\n    items.append(9)",
        "items = [3, 1, 2]\nassert f(items) is None\nassert items == [1, 2, 3, 9]",
    ),
    "inner list in place": (
        "def f(rows, seen):\n    rows[0][0] = 7\n    seen['x'] = 1\n    del seen['y']",
        "row = [1, 2]\nrows, seen = [row], {'y': 0}\nf(rows, seen)\nassert row == [7, 2] and seen == {'x': 1}",
    ),
    "exception": (
        "class Own(ValueError):\n    pass\ndef f(a):\n    raise Own('no') if a else KeyError('k')",
        "for value, kind in ((1, ValueError), (0, KeyError)):\n"
        "    try:\n        f(value)\n    except kind:\n        continue\n    assert False",
    ),
    "class": (
        "class f:\n    def __init__(self, items):\n        self.items = list(items)\n    def pop(self):\n"
        "        return self.items.pop()\n    @property\n    def size(self):\n        return len(self.items)",
        "stack = f([1, 2])\nassert stack.pop() == 2\nassert stack.size == 1\nassert stack.items == [1]\n"
        "assert stack != f([1])",
    ),
    "objects of the tests": (
        "class Node:\n    def __init__(self, value):\n        self.value, self.next = value, None\n"
        "def f(node):\n    return 0 if node is None else node.value + f(node.next)",
        "root = Node(1)\nroot.next = Node(2)\nroot.next.next = Node(3)\nassert f(root) == 6\nassert f([None][0]) == 0",
    ),
    "module of the solution": ("import math\ndef f(a):\n    return math.sqrt(a)", "assert f(2) == math.sqrt(2)"),
    "constant of the solution": ("LIMIT = 5\ndef f(a):\n    return min(a, LIMIT)", "assert f(9) == LIMIT"),
    "named like a builtin": ("def sum(a, b):\n    return a * b", "assert sum(2, 3) == 6", "sum"),
    "type as an argument": ("def f(a, kind):\n    return isinstance(a, kind)", "assert f(1, int) and not f(1, str)"),
    "match": ("import re\ndef f(a):\n    return re.search('b', a)", "assert f('abc')\nassert not f('x')"),
    "match, used": ("import re\ndef f(a):\n    return re.search('b', a)", "assert f('abc').start() == 1"),
    "threads": (
        "from concurrent.futures import ThreadPoolExecutor\ndef f(a):\n"
        "    with ThreadPoolExecutor(4) as pool:\n        return list(pool.map(abs, a))",
        "assert f([-1, 2]) == [1, 2]",
    ),
    "event loop": ("import asyncio\ndef f(a):\n    return asyncio.run(asyncio.sleep(0.01, a))", "assert f(1) == 1"),
    "prints": ("def f(a):\n    print('seen', a)\n    return a", "assert f(1) == 1"),
    "temporary file": (
        "import tempfile\ndef f(a):\n    with tempfile.TemporaryFile('w+') as file:\n        file.write(a)\n"
        "        file.seek(0)\n        return file.read()",
        "assert f('x') == 'x'",
    ),
    "data class": (
        "from __future__ import annotations\nfrom dataclasses import dataclass\nimport typing\n@dataclass\nclass P:\n"
        "    x: typing.ClassVar[int] = 1\n    y: int = 2\ndef f(a):\n    return P(a).y",
        "assert f(3) == 3",
    ),
    "much of the library": (
        "import random, hashlib, sqlite3, decimal, statistics, zoneinfo, sysconfig, os.path, ssl, uuid, csv, struct\n"
        "def f(a):\n    sysconfig.get_paths(), os.path.expanduser('~'), uuid.uuid4(), random.random()\n"
        "    return sqlite3.connect(':memory:').execute('select 1').fetchone()",
        "assert f(1) == (1,)",
    ),
    "signal": (
        "import signal\ndef f(a):\n    seen = []\n    signal.signal(signal.SIGALRM, lambda *_: seen.append(1))\n"
        "    signal.setitimer(signal.ITIMER_REAL, 0.01)\n    while not seen:\n        pass\n    return a",
        "assert f(1) == 1",
    ),
    "order of a set": ("def f():\n    return list({'a', 'b', 'c'})", "assert f() == list({'a', 'b', 'c'})"),
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_programs_pass(name, verdict_on):
    verdict = verdict_on(*RIGHT[name])
    assert (verdict.outcome, verdict.detail) == ("passed", "")
    assert verdict.isolated and verdict.passed


def test_only_what_was_asked_for_takes_part_in_the_tests(verdict_on):
    """A solution that answers with more names would run in the place of built-ins and of the prelude's helpers."""
    forged = (
        "import sys\nwire = sys.modules['codegen2_jax.sandbox.wire']\ndumps = wire.dumps\n"
        "def more(m):\n    if 'kinds' in m:\n        m = {**m, 'kinds': {**m['kinds'], 'NAME': 'callable'}}\n"
        "    return dumps(m)\nwire.dumps = more\ndef NAME(*_):\n    return 0\ndef f(x):\n    return 7\n"
    )
    prelude = "def poly(x):\n    return abs(x) + 1\n"
    for name, tests in (("abs", "assert abs(f(1)) == 0"), ("poly", "assert poly(f(1)) == 0")):
        found = verdict_on(forged.replace("NAME", name), tests, trusted_prelude=prelude)
        assert (found.outcome, "not asked for" in found.detail) == ("violation", True)


def test_a_helper_of_the_prompt_is_trusted(verdict_on):
    prelude = "def poly(xs, x):\n    return sum(c * x**i for i, c in enumerate(xs))\n\ndef f(xs):\n    pass\n"
    tests = "assert abs(poly([1, 2], f([1, 2]))) < 1e-4"
    right = "def f(xs):\n    return -0.5"
    assert verdict_on(right, tests, trusted_prelude=prelude).passed
    forged = "def poly(xs, x):\n    return 0\ndef f(xs):\n    return 1"
    assert verdict_on(forged, tests, trusted_prelude=prelude).outcome == "failed"


WRONG = {
    "wrong value": ("def f():\n    return 1", "assert f() == 2", "failed", "wrong: AssertionError in line 1"),
    "wrong type": ("def f():\n    return None", "assert abs(f() - 1) < 2", "failed", "wrong: TypeError"),
    "raises": ("def f():\n    return 1 / 0", "assert f() == 2", "error", "exception: ZeroDivisionError: division"),
    "does not compile": ("def f(:", "assert f() == 2", "error", "exception: SyntaxError"),
    "is not there": ("def g():\n    return 1", "assert f() == 1", "error", "exception: NameError"),
    "too many arguments": ("def f():\n    return 1", "assert f(1) == 1", "error", "exception: TypeError"),
    "exits": ("def f():\n    exit(0)", "assert f() == 1", "error", "exited"),
    "never called": ("def f():\n    return 1", "assert True", "error", "exception: the tests ended without a call"),
    "closed output": (
        "import sys\nsys.stdout.close()\ndef f():\n    return 1", "assert f() == 1", "error", "exception"),
    "iterator that stops": (
        "def f(a):\n    raise StopIteration", "assert all(map(f, [1, 2]))", "error", "exception: StopIteration"),
    "swallowed by the tests": (
        "import os\ndef f():\n    os._exit(0)", "try:\n    f()\nexcept BaseException:\n    pass", "error", "exited"),
    "always equal, held by the tests": (
        "class f:\n    def __eq__(self, other):\n        return True", "assert f() == 1", "failed", "wrong: Assert"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_programs_get_their_label(name, verdict_on):
    solution, tests, outcome, detail = WRONG[name]
    verdict = verdict_on(solution, tests)
    assert verdict.outcome == outcome, verdict
    assert verdict.detail.startswith(detail), verdict.detail


def test_whole_programs(verdict_on):
    text = "import sys\nif __name__ == '__main__':\n    print('hi')\n    sys.stderr.write('oh')"
    hello = verdict_on(text, style="output")
    assert (hello.outcome, hello.stdout, hello.stderr) == ("passed", "hi\n", "oh")
    assert verdict_on("print(1)\nraise SystemExit", style="output").passed
    ended = verdict_on("print('x', end='')\nimport sys\nsys.exit(3)", style="output")
    assert (ended.outcome, ended.detail, ended.stdout) == ("error", "exited: ended with exit code 3", "x")
    raised = verdict_on("print(1)\n[][1]", style="output")
    assert (raised.outcome, raised.detail) == ("error", "exception: IndexError: list index out of range")
    assert raised.stdout == "1\n" and 'File "solution.py", line 2' in raised.stderr and "jail" not in raised.stderr


def test_python_with_tests_behind_it_is_kept_apart(verdict_on):
    assert verdict_on("def f():\n    return 1", "assert f() == 1", style="program").passed
    assert verdict_on("import os\nos._exit(0)", "assert f() == 1", style="program").outcome == "error"


def test_cpu_time_decides(isolated):
    spin = "import time\nwhile time.process_time() < {}:\n    pass\ndef f():\n    return 1"
    with Sandbox(2, Limits(cpu_seconds=0.5)) as sandbox:
        programs = [Program(f"{s}", spin.format(s), "assert f() == 1", "f") for s in (0.2, 0.9)]
        short, long = sandbox.judge(programs)
    assert short.passed and 0.1 < short.cpu_seconds < 0.5
    assert long.outcome == "timeout" and long.detail.startswith("cpu_time") and long.cpu_seconds > 0.5


def test_a_broken_test_is_no_verdict_on_the_program(verdict_on):
    verdict = verdict_on("def f():\n    return 1", "assert f( == 1")
    assert verdict.outcome == "infra" and verdict.detail.startswith("tests: they do not compile")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"style": "x"}, "style='x' is unknown"),
        ({"language": "cobol"}, "language='cobol' is unknown"),
        ({"tests": " "}, "has no tests"),
        ({"entry_point": "a b"}, "entry_point='a b' is no name"),
        ({"language": "java"}, "style 'calls' is for python"),
        ({"solution": None}, "solution is a NoneType"),
    ],
)
def test_impossible_programs(fields, message):
    good = {"name": "x", "solution": "pass", "tests": "pass", "entry_point": "f"}
    with pytest.raises(UserError, match=message):
        Program(**{**good, **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"cpu_seconds": 0}, "must be positive"), ({"cpu_seconds": float("nan")}, "must be positive and finite"),
     ({"memory_mib": 1}, "starts no interpreter"), ({"threads": 1.5}, "must be a whole number"),
     ({"wall_seconds": "x"}, "must be a number")],
)  # fmt: skip
def test_impossible_limits(fields, message):
    with pytest.raises(UserError, match=message):
        Limits(**fields)


def test_a_verdict_is_a_record():
    verdict = Verdict("x", "passed", "", 0.1, 0.2)
    assert Verdict(**verdict.record()) == verdict and verdict.outcome in OUTCOMES
