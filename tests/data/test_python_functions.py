"""Functions as texts."""

import ast
import textwrap

import pytest

from codegen2_jax.data import python_functions
from codegen2_jax.data.python_functions import Limits, first_sentences, functions_of, is_short, is_trivial
from codegen2_jax.data.sources import SourceFile

MODULE = '''
import os

@decorator
def first(a: int, *, b: "str" = None) -> bool:
    """Return whether a is "first".

    More words that no task uses.
    """
    count: int = 0  # a comment
    total: int
    def inner(x: int):
        "a docstring inside"
        return x
    return a == b and inner(count)

class Outer:
    """A class."""
    class Inner:
        async def method(self):
            pass

    if os.name == "nt":
        def only_here(self): return (1,
                                     2)

def only_a_docstring():
    """Nothing else."""
'''


def functions(text):
    return functions_of(SourceFile(path="demo/m.py", package="demo", licence="MIT", text=text))


def test_functions_and_methods_are_found_with_plain_texts():
    found = functions(MODULE)
    names = [function.name for function in found]
    assert names == ["demo/m.py::first@5", "demo/m.py::Outer.Inner.method@20", "demo/m.py::Outer.only_here@24"]
    first, method, only_here = found
    assert first.signature == "def first(a, *, b=None):"
    assert first.body == textwrap.dedent(
        """\
        count = 0

        def inner(x):
            return x
        return a == b and inner(count)"""
    )
    assert first.sentence == 'Return whether a is "first".'
    assert first.num_statements == 4
    assert [function.in_class for function in found] == [False, True, True]
    assert method.signature == "async def method(self):"
    assert only_here.text == "def only_here(self):\n    return (1, 2)" and only_here.docstring == ""


@pytest.mark.parametrize("function", functions(MODULE), ids=lambda function: function.name)
def test_signature_and_body_make_the_function_again(function):
    again = f"{function.signature}\n{textwrap.indent(function.body, '    ')}"
    assert ast.dump(ast.parse(again)) == ast.dump(ast.parse(function.text))


def test_the_fingerprint_sees_the_code_only():
    same = [
        "def f(a):\n    '''Doc.'''\n    return a + 1",
        "@cached\ndef g(a: int) -> int:\n\n    return (a+1) # comment",
    ]
    other = ["def f(a):\n    return a + 2", "def f(b):\n    return b + 1", "async def f(a):\n    return a + 1"]
    prints = [functions(text)[0].fingerprint for text in same + other]
    assert prints[0] == prints[1] and len(set(prints)) == 4


@pytest.mark.parametrize(
    ("docstring", "count", "sentence"),
    [
        ("Return the\n   name. And more.", 1, "Return the name."),
        ("Return the\n   name. And more.", 2, "Return the name. And more."),
        ("Use e.g. this one here", 1, "Use e.g. this one here"),
        ("Do the thing\n\nArgs: x", 1, "Do the thing"),
        ("Do the thing now\n:param x: what", 1, "Do the thing now"),
        ("S.join(iterable) -> str", 1, ""),
        ("Too short.", 1, ""),
        ("Call it like >>> f(1)", 1, ""),
        ("Gr\u00f6\u00dfe of the thing", 1, ""),
        ("a" * 10 + " word after word" * 30, 1, ""),
        ("", 1, ""),
    ],
)
def test_first_sentences(docstring, count, sentence):
    assert first_sentences(docstring, count) == sentence


@pytest.mark.parametrize(
    ("body", "trivial"),
    [("pass", True), ("...", True), ("return", True), ("return None", True), ("'x'; return 3", True),
     ("return x", False), ("raise NotImplementedError('x')", True), ("raise ValueError", False),
     ("x = 1; return 2", False)],
)  # fmt: skip
def test_trivial_bodies(body, trivial):
    assert is_trivial(functions(f"def f(x): {body}")[0]) is trivial


def test_limits_are_about_the_written_text():
    function = functions("def f(x):\n    if x:\n        return 'abc'\n    return 1")[0]
    lines, characters = function.body.count("\n") + 1, len(function.body)
    assert is_short(function, Limits(body_lines=lines, body_characters=characters))
    assert not is_short(function, Limits(body_lines=lines - 1, body_characters=characters))
    assert not is_short(function, Limits(body_lines=lines, body_characters=characters - 1))
    assert not is_short(function, Limits(signature_characters=len(function.signature) - 1))
    assert not is_short(functions("def f(x):\n    return x + '\u00e9'")[0], Limits())


def test_text_that_does_not_parse_has_no_functions():
    assert functions("def f(:\n") == () and python_functions.parse("x = '\\0'\0") is None


def test_the_prompt_holds_sentences_and_signature():
    assert python_functions.generation_prompt(functions(MODULE)[0]) == (
        'Return whether a is "first".\ndef first(a, *, b=None):'
    )
