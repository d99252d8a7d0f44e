"""MTPB's comparison: what a program printed last, cast and compared as its publishers do, and beyond."""

import subprocess
import sys

import pytest

from codegen2_jax.metrics.printed_values import NOTHING, instrumented, printed, same

PROGRAMS = {
    "print([1, 2])": [1, 2],
    "x = 3\nx * 2": 6,
    "x = 3\ny = x * 2": 6,
    "print('a')\nprint(1.5, 'b')": 1.5,
    "import sys\nsys.stdout.write('\\x01printed [[\"p\", 1]]\\n')\nprint(2)": 2,
    "print({'a': (1, 2), 3: {4}})": {"a": (1, 2), 3: [4]},
    "print(None)": None,
    "print(True)": True,
    "print(map(str, [1, 2]))": ["1", "2"],
    "print(float('nan') > 1, 2)": False,
    "print(10 ** 5000)": 10**5000,
    "import collections\nprint(collections.Counter('aab'))": {"a": 2, "b": 1},
    "print(type(3))": "int",
    "if True:\n    print('in a block')": "in a block",
    "print()": NOTHING,
    "x = 1\nfor y in (): pass": NOTHING,
}


def test_the_last_printed_value_comes_out():
    """All in one interpreter: starting one for each would take most of the time."""
    programs = list(map(instrumented, PROGRAMS))
    source = f"import contextlib, io, sys, builtins\nreal = print\nfor text in {programs!r}"
    source += ":\n    out = io.StringIO()\n    builtins.print = real\n    with contextlib.redirect_stdout(out):\n"
    source += "        exec(text, {})\n    real(repr(out.getvalue()))\n"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    outputs = [eval(line) for line in done.stdout.splitlines()]
    for (program, expected), output in zip(PROGRAMS.items(), outputs, strict=True):
        found = printed(output)
        assert found is expected if expected is NOTHING else found == expected, program


def test_numpy_values_become_plain():
    pytest.importorskip("numpy")
    program = instrumented("import numpy as np\nprint((np.float64(0.5), np.arange(3), np.int64(4), np.bool_(True)))")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert printed(done.stdout) == (0.5, [0, 1, 2], 4, True)


@pytest.mark.parametrize(
    ("value", "expected", "result"),
    [
        (1, 1, True), ("1", 1, True), (1.0000001, 1, True), (1.5, 1, True), (2, 1, False), ("x", 1, False),
        (1, "1", True), ([(1, 2)], [[1, 2]], True), ((1, 2), [1, 2], True), ([1.0000001], [1], True),
        ([1, 2], [1, 2, 3], False), ("True", True, True), (1, True, False), (float("inf"), 3, False),
        (0.3000000004, 0.3, True), (0.31, 0.3, False), (NOTHING, "x", False), ("ab", ["a", "b"], True),
    ],
)  # fmt: skip
def test_comparison(value, expected, result):
    assert same(value, expected) is result
    assert same(value, expected, published=True) is result


def test_dictionaries_and_none_are_ours():
    for value, expected in [({1: ["a"]}, {"1": ["a"]}), ("None", None), (None, None)]:
        assert same(value, expected) and not same(value, expected, published=True)
    assert not same({1: ["b"]}, {"1": ["a"]}) and not same([1], {"1": 1}) and not same(0, None)


def test_a_program_that_cannot_be_read_stays_broken():
    with pytest.raises(SyntaxError):
        compile(instrumented("def f(:\n"), "program", "exec")
    assert printed("") is NOTHING and printed("\x01printed [nonsense") is NOTHING
