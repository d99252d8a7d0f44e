"""Checks a literal value against a type annotation, in words a user can act on.

Stricter than Python and kinder than a stack trace: True is no whole number, 1e3 is a float, and a list is no tuple,
since configurations are frozen and hashable. Only what a literal can be is judged; any other annotation accepts all.
"""

import collections.abc
import difflib
import inspect
import types
import typing
from typing import Any, Literal

_SCALARS = {int: "a whole number", float: "a number", str: "a quoted string", bool: "True or False", type(None): "None"}
_WORDS = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False}


def nearest(name: str, known) -> str | None:
    """The entry of `known` that looks most like `name`, or None; case is no difference."""
    by_folded = {entry.casefold(): entry for entry in sorted(known, reverse=True)}
    matches = difflib.get_close_matches(name.casefold(), sorted(by_folded), n=1, cutoff=0.6)
    return by_folded[matches[0]] if matches else None


def parameters(target) -> tuple[dict[str, inspect.Parameter], bool]:
    """(named parameters of a function or class, whether it takes any keyword); annotations are resolved types.

    An annotation that cannot be resolved (a name that exists for type checkers only) becomes `Any`.
    """
    function = target.__init__ if inspect.isclass(target) else target
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError):
        hints = {}
    try:
        signature = inspect.signature(target)
    except ValueError:  # some classes written in C show none
        return {}, True
    named, any_keyword = {}, False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            any_keyword = True
        elif parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            named[parameter.name] = parameter.replace(annotation=hints.get(parameter.name, Any))
    return named, any_keyword


def describe(annotation) -> str:
    """What a value of this type looks like, for an error message."""
    if annotation is None:
        return "None"
    if annotation in _SCALARS:
        return _SCALARS[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(repr(choice) for choice in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(part) for part in arguments)
    if origin is typing.Annotated:
        return describe(arguments[0])
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return f"a tuple whose entries are each {describe(arguments[0])}"
    if origin is tuple:
        return "the tuple (" + ", ".join(describe(part) for part in arguments) + ")"
    return getattr(origin or annotation, "__name__", str(annotation))


def accepts(value, annotation) -> bool:
    """Whether the literal `value` is of the type `annotation`."""
    if annotation in (Any, object):
        return True
    if annotation is None:
        annotation = type(None)
    if annotation in (int, float) and isinstance(value, bool):
        return False
    if annotation is float:
        return isinstance(value, int | float)
    if annotation in _SCALARS:
        return isinstance(value, annotation)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if origin in (typing.Union, types.UnionType):
        return any(accepts(value, part) for part in arguments)
    if origin is typing.Annotated:
        return accepts(value, arguments[0])
    if origin is tuple and arguments:
        if not isinstance(value, tuple):
            return False
        if arguments[-1] is Ellipsis:
            return all(accepts(entry, arguments[0]) for entry in value)
        return len(value) == len(arguments) and all(map(accepts, value, arguments))
    if origin is collections.abc.Callable or annotation is typing.Callable:
        return callable(value)
    if origin in (collections.abc.Sequence, list, set, frozenset):
        kind = list if origin is list else (tuple, list, set, frozenset)
        return isinstance(value, kind) and all(accepts(entry, arguments[0]) for entry in value)
    if origin in (dict, collections.abc.Mapping):
        return isinstance(value, dict) and all(
            accepts(key, arguments[0]) and accepts(entry, arguments[1]) for key, entry in value.items()
        )
    if inspect.isclass(annotation) and getattr(annotation, "_is_protocol", False):
        return not isinstance(value, int | float | str | type(None) | tuple | list | dict)
    if inspect.isclass(annotation):
        return isinstance(value, annotation)
    return True


def suggest(value, annotation):
    """A value of the right type that was probably meant, as a 1-tuple, or () when there is no good guess."""
    candidates: list[Any] = []
    if isinstance(value, float) and value.is_integer():
        candidates.append(int(value))
    if isinstance(value, str):
        if value.casefold() in _WORDS:
            candidates.append(_WORDS[value.casefold()])
        if value.casefold() in ("none", "null"):
            candidates.append(None)
        for number in (int, float):
            try:
                candidates.append(number(value))
            except ValueError:
                pass
        match = nearest(value, [choice for choice in _choices(annotation) if isinstance(choice, str)])
        candidates += [match] if match else []
    if type(value) is int and value in (0, 1):
        candidates.append(bool(value))
    if isinstance(value, list):
        candidates.append(tuple(value))
    if isinstance(value, int | float) and not isinstance(value, bool):
        candidates.append(repr(value))
    candidates.append((value,))
    return next(((candidate,) for candidate in candidates if accepts(candidate, annotation)), ())


def _choices(annotation) -> list:
    """All values that a Literal anywhere in the annotation allows."""
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is Literal:
        return list(arguments)
    return [choice for part in arguments if part is not Ellipsis for choice in _choices(part)]
