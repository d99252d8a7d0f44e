"""Values against annotations: what is accepted, and what is suggested instead."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, Optional, Protocol

import pytest

from codegen2_jax.annotations import accepts, describe, nearest, parameters, suggest


class Interface(Protocol):
    def __call__(self) -> int: ...


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (3, int),
        (3, float),
        (3.5, float),
        (True, bool),
        ("x", str),
        (None, None),
        (None, int | None),
        (3, int | None),
        ("x", Optional[str]),  # noqa: UP045 - the old spelling is an annotation too
        ("a", Literal["a", "b"]),
        ((), tuple[str, ...]),
        (("a", "b"), tuple[str, ...]),
        (("a", 1), tuple[str, float]),
        ((("a", 1.0), ("b", 2)), tuple[tuple[str, float], ...]),
        (("a",), Sequence[str]),
        (["a"], Sequence[str]),
        ([1], list[int]),
        ({"a": 1}, dict[str, int]),
        ({"a": 1}, Mapping[str, float]),
        (1, Annotated[int, "units"]),
        (object(), Any),
        (3, object),
        (len, Callable[[int], int]),
        (len, Interface),
    ],
)
def test_accepts(value, annotation):
    assert accepts(value, annotation)


@pytest.mark.parametrize(
    ("value", "annotation", "better"),
    [
        (1e3, int, (1000,)),
        (2.5, int, ()),
        (float("inf"), int, ()),
        (True, int, ()),
        (True, float, ()),
        ("12", int, (12,)),
        ("0.5", float, (0.5,)),
        ("twelve", int, ()),
        (None, int, ()),
        (5, str, ("5",)),
        (5, str | None, ("5",)),
        ("None", int | None, (None,)),
        ("yes", bool, (True,)),
        (0, bool, (False,)),
        (2, bool, ()),
        ("disjont", Literal["disjoint", "code"], ("disjoint",)),
        ("CODE", Literal["disjoint", "code"], ("code",)),
        ("other", Literal["disjoint", "code"], ()),
        (1, Literal[True], (True,)),
        ("a", tuple[str, ...], (("a",),)),
        (["a", "b"], tuple[str, ...], (("a", "b"),)),
        (("a",), tuple[str, str], ()),
        (("a", 1), tuple[str, ...], ()),
        ([1.5], list[int], ()),
        ("ab", Sequence[str], (("ab",),)),
        ({"a": "b"}, dict[str, int], ()),
        ("a", Callable, ()),
        (3, Interface, ()),
    ],
)
def test_refuses_and_suggests(value, annotation, better):
    assert not accepts(value, annotation)
    assert suggest(value, annotation) == better


def test_describe_is_for_people():
    assert describe(int | None) == "a whole number or None"
    assert describe(Literal["a", "b"]) == "one of 'a', 'b'"
    assert describe(tuple[str, ...]) == "a tuple whose entries are each a quoted string"
    assert describe(tuple[int, float]) == "the tuple (a whole number, a number)"
    assert describe(Sequence[str]) == "Sequence"


def test_nearest_ignores_case_and_gives_up_on_the_unlike():
    assert nearest("top_k", {"TOP_K", "SEED"}) == "TOP_K"
    assert nearest("zzz", {"TOP_K", "SEED"}) is None
    assert nearest("anything", ()) is None


def test_parameters_resolve_annotations_written_as_text():
    def target(*, a: "int", b: "NoSuchName" = 0, **rest):  # noqa: F821
        pass

    named, any_keyword = parameters(target)
    assert list(named) == ["a", "b"] and any_keyword
    assert named["a"].annotation is Any  # one name that does not exist hides all

    def other(*, a: "int"):
        pass

    assert parameters(other)[0]["a"].annotation is int
