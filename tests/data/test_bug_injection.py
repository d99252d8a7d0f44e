"""Bugs and abstraction."""

import ast
import re
import subprocess
import sys

import pytest

from codegen2_jax.data import bug_injection
from codegen2_jax.data.bug_injection import Abstraction, abstracted, refinement
from codegen2_jax.data.python_functions import Limits, functions_of, is_short
from codegen2_jax.data.sources import standard_library

LABEL = re.compile(r"\b(?:VAR|METHOD|TYPE|STRING|INT|FLOAT)_\d+\b")


def function(text):
    return ast.parse(text).body[0]


def test_words_are_separated_by_one_space_and_keep_the_structure():
    lines = ["def find(self, rows):", "    for row in rows:", "        if row.size > 17:",
             "            return Thing(row, 'a b')", "    return None"]  # fmt: skip
    assert abstracted("\n".join(lines)) == (
        "def METHOD_1 ( self , VAR_1 ) : NEWLINE INDENT for VAR_2 in VAR_1 : NEWLINE INDENT if VAR_2 . VAR_3 > INT_1 : "
        "NEWLINE INDENT return TYPE_1 ( VAR_2 , STRING_1 ) NEWLINE DEDENT DEDENT return None"
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def f(x):\n    return f'{x!r:>{x}} {f(x)}' + f'{x}'", "return STRING_1 + STRING_2"),
        ("def f(x):\n    return len(x) + 2 * x[0].get(1.5, 1e3)",
         "return len ( VAR_1 ) + 2 * VAR_1 [ 0 ] . get ( FLOAT_1 , FLOAT_2 )"),
        ("def f(x):\n    return x.__class__, '', CONSTANT, ValueError",
         "return VAR_1 . __class__ , '' , VAR_2 , ValueError"),
        ("def f(x):\n    return 0x1F, 10_000, b'x', _Private", "return INT_1 , INT_2 , STRING_1 , TYPE_1"),
    ],
)  # fmt: skip
def test_kinds_of_words(text, words):
    assert abstracted(text) == "def METHOD_1 ( VAR_1 ) : NEWLINE INDENT " + words


def test_numbers_are_given_once_for_all_texts():
    abstraction = Abstraction()
    assert abstraction("def f(b, a):\n    pass") == "def METHOD_1 ( VAR_1 , VAR_2 ) : NEWLINE INDENT pass"
    assert abstraction("def g(a):\n    f(a)") == "def METHOD_2 ( VAR_2 ) : NEWLINE INDENT METHOD_1 ( VAR_2 )"
    assert len(abstraction) == 4


# One function for each kind, written so that no other kind has a place in it or the text's hash picks this one.
@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("comparison_operator", "def f(self):\n    return self.left < self.right"),
        ("swapped_arguments", "def f(self):\n    return self.call(self.left, self.right)"),
        ("and_or", "def f(self):\n    return self.left and self.right"),
        ("dropped_not", "def f(self):\n    return not self.left.right"),
        ("wrong_sign", "def f(self):\n    return -self.left.right"),
        ("wrong_variable", "def f(left, right):\n    return left.call(right)"),
        ("wrong_constant", "def f(self):\n    return self.call(key=True)"),
        ("negated_condition", "def f(self):\n    if self.left:\n        self.call()"),
        ("missing_return", "def f(self):\n    global left\n    return self.left.right"),
    ],
)  # fmt: skip
def test_each_kind_of_bug(kind, text):
    found = refinement(function(text))
    assert found.kind == kind and found.buggy != found.fixed
    assert found.fixed == abstracted_like(found, text)


def abstracted_like(found, text):
    """The fixed side again: labels may differ from abstracting it alone, but only by the order of appearance."""
    alone = abstracted(text)
    names = dict(zip(LABEL.findall(alone), LABEL.findall(found.fixed), strict=True))
    return LABEL.sub(lambda match: names[match.group()], alone)


def test_calculations_get_wrong_operators_or_are_one_off_and_texts_are_not_calculated_with():
    kinds = {refinement(function(f"def f(self):\n    return self.left + self.v{i}")).kind for i in range(20)}
    assert kinds == {"arithmetic_operator", "off_by_one"}
    assert refinement(function("def f(self):\n    return self.left + 'text' + self.right")) is None


def test_a_removed_statement_must_be_writable_from_what_is_left():
    text = "def f(self):\n    self.left()\n    self.right()"
    assert refinement(function(text)) is None  # each removal would take a name away
    found = refinement(function("def f(self):\n    self.left()\n    self.right()\n    self.left()"))
    assert found.kind == "missing_statement"
    assert len(found.buggy.split()) < len(found.fixed.split())


def test_length_limits():
    text = "def f(self):\n    return self.left < self.right"
    length = len(abstracted(text).split())
    assert refinement(function(text), max_words=length, min_words=length) is not None
    assert refinement(function(text), max_words=length - 1) is None
    assert refinement(function(text), min_words=length + 1) is None


@pytest.fixture(scope="module")
def refinements():
    files = [file for file in standard_library() if file.path.startswith(("cpython/c", "cpython/s"))]
    found = (refinement(one.node) for file in files for one in functions_of(file) if is_short(one, Limits()))
    return [one for one in found if one is not None]


def test_every_fix_can_be_written_from_the_buggy_side(refinements):
    assert len(refinements) > 100
    for one in refinements:
        assert one.buggy != one.fixed
        assert set(LABEL.findall(one.fixed)) <= set(LABEL.findall(one.buggy))
        seen = list(dict.fromkeys(LABEL.findall(one.buggy)))
        for label in ("VAR", "METHOD", "TYPE", "STRING", "INT", "FLOAT"):
            numbers = [int(name.split("_")[1]) for name in seen if name.startswith(label + "_")]
            assert numbers == list(range(1, len(numbers) + 1))
        assert max(len(one.buggy.split()), len(one.fixed.split())) <= bug_injection.MAX_WORDS
        assert "  " not in one.buggy + one.fixed and "\n" not in one.buggy + one.fixed


def test_no_kind_of_bug_dominates(refinements):
    counts = bug_injection.kinds(refinements)
    assert len(counts) >= 10 and sum(counts.values()) == len(refinements)
    assert max(counts.values()) < 0.35 * len(refinements)


def test_the_bug_does_not_depend_on_the_process(program_environment):
    code = (
        "import ast; from codegen2_jax.data.bug_injection import refinement\n"
        "print([refinement(ast.parse(f'def f(a, b, c={i}):\\n    if a < b: return g(a, b)\\n    return a + b').body[0])"
        " for i in range(10)])"
    )
    outputs = set()
    for seed in ("0", "1"):
        environment = program_environment | {"PYTHONHASHSEED": seed}
        program = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)
        outputs.add(program.stdout)
    assert len(outputs) == 1 and b"Refinement(" in outputs.pop()
