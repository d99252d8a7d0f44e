"""What the gin files and the command line say, as data, and the checks that gin leaves out.

No gin in here: `cli.py` parses statements into a `Config`, this module imports what they configure and judges them.
Every finding is a `UserError` that names the flag or the line, the value, what is allowed, and what to write instead.
"""

import importlib
import importlib.util
import inspect
import json
import shlex
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from codegen2_jax.annotations import accepts, describe, nearest, parameters, suggest
from codegen2_jax.errors import UserError

REQUIRED = "gin.REQUIRED"
# Macros that an environment variable of the same name fills where no file and no flag gives a value.
FROM_ENVIRONMENT = (
    "CODETASK_CL_DIR",
    *("HUMANEVAL_FILE", "HUMANEVAL_INFILLING_DIR", "MBPP_DIR", "MTPB_DIR", "MULTIPL_E_FILE"),
    *("BOOLQ_DIR", "DEFECT_DIR", "LAMBADA_DIR", "PIQA_DIR", "POJ104_DIR", "XSUM_DIR"),
)


@dataclass(eq=False)
class Source:
    """Where statements stand, and the modules that it imports, by bound name.

    A gin file has a path; a flag of the command line and an environment variable have none, and their name shows them.
    """

    name: str
    kind: Literal["file", "flag", "environment"] = "file"
    path: Path | None = None
    packaged: bool = False
    dynamic: bool = False
    imports: dict[str, tuple[str, str, int]] = field(default_factory=dict)  # bound name: (module, root of names, line)


class Macro(NamedTuple):
    """%NAME in a value."""

    name: str


class Reference(NamedTuple):
    """@scope/selector, or @scope/selector() with `evaluate`, in a value."""

    scopes: tuple[str, ...]
    selector: str
    evaluate: bool


class Given(NamedTuple):
    """One statement: the value that `name` is given, as parsed and as written, and where."""

    name: str
    value: Any
    text: str
    source: Source
    line: int

    @property
    def where(self) -> str:
        """The flag, or file, line and statement."""
        statement = f": {self.written_as(self.text)}" if self.source.kind == "file" else ""
        return place(self.source, self.line) + statement

    def written_as(self, text: str) -> str:
        """The statement with another right-hand side, ready for the shell or for the file."""
        return f"{self.name} = {text}" if self.source.kind == "file" else flag(self.name, text)


class Binding(NamedTuple):
    """A parameter of something configurable is given a value."""

    scopes: tuple[str, ...]
    selector: str
    argument: str
    given: Given


class Target(NamedTuple):
    """What a selector means: a function or class, and the full dotted name that gin registers it under."""

    object: Callable
    name: str


@dataclass
class Config:
    """All statements in their order; of two that say the same, the later one counts."""

    sources: list[Source] = field(default_factory=list)
    macros: dict[str, Given] = field(default_factory=dict)
    bindings: list[Binding] = field(default_factory=list)
    references: list[tuple[Source, int, str]] = field(default_factory=list)  # every selector, with its line
    defined_in: dict[str, list[Source]] = field(default_factory=dict)  # macro: who gives it a value
    used_in: dict[str, tuple[Source, int]] = field(default_factory=dict)  # macro: who mentions it first
    warnings: list[str] = field(default_factory=list)

    def define(self, given: Given) -> None:
        """A macro's value."""
        self.macros[given.name] = given
        self.defined_in.setdefault(given.name, []).append(given.source)


def literal(value) -> str:
    """A value as gin reads it, strings in double quotes."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def flag(name: str, text: str) -> str:
    """The flag that gives a macro or parameter a value, ready for the shell."""
    in_double_quotes = "'" in text and not set(text) & set('"$`!' + chr(92))
    return f"--gin.{name}=" + (f'"{text}"' if in_double_quotes else shlex.quote(text))


def place(source: Source, line: int) -> str:
    """For the head of a message."""
    return f"{source.name} line {line}" if source.kind == "file" else source.name


def did_you_mean(name: str, known, otherwise: str = "") -> str:
    """The end of a message about an unknown name."""
    match = nearest(name, known)
    return f"did you mean {match}?" if match else otherwise or f"known: {', '.join(sorted(known)) or 'none'}."


def check_macros(config: Config) -> None:
    """Every macro that is given a value is known, and every one that is mentioned has a value.

    Known is what a value mentions or a packaged file defines: a misspelt name is neither.
    """
    packaged = {name for name, sources in config.defined_in.items() if any(source.packaged for source in sources)}
    known = packaged | set(config.used_in) | {"JOB"}
    for name, given in config.macros.items():
        if name in known:
            continue
        selectors = {f"{b.selector.rsplit('.', 1)[-1]}.{b.argument}" for b in config.bindings if b.argument == name}
        hint = f"did you mean {min(selectors)}?" if selectors else did_you_mean(name, known)
        raise UserError(f"{given.where}: nothing uses a macro {name}; {hint}")
    for name, (source, line) in config.used_in.items():
        if name not in config.macros:
            hint = did_you_mean(name, config.macros, "give it a value.")
            raise UserError(f"{place(source, line)}: the macro %{name} has no value; {hint}")
    for given in config.macros.values():
        _check_required(given)


def _check_required(given: Given) -> None:
    """Raises for %gin.REQUIRED, which stands for a value that the user has to give."""
    if Macro(REQUIRED) in list(_leaves(given.value)):
        by = f" by {place(given.source, given.line)}" if given.source.kind == "file" else ""
        other = f" or the environment variable {given.name}" if given.name in FROM_ENVIRONMENT else ""
        raise UserError(f"{given.name} is required{by}; give --gin.{given.name}=VALUE{other}.")


def resolve(config: Config) -> dict[tuple[Source, str], Target]:
    """Imports the modules that the files name and finds what every selector means there.

    A selector of the command line, or of a file without dynamic registration, means what other files name so: the
    trailing parts of the full name suffice.
    """
    for source in config.sources:
        for module_name, root, line in source.imports.values():
            _import(source, line, module_name, root)
    targets: dict[tuple[Source, str], Target] = {}
    late = []
    for source, line, selector in config.references:
        if (source, selector) in targets:
            continue
        if source.dynamic:
            targets[source, selector] = _attribute(source, line, selector)
        else:
            late.append((source, line, selector))
    known = {target.name: target for target in targets.values()}
    for source, line, selector in late:
        matches = {
            target.object: target for name, target in known.items() if name == selector or name.endswith("." + selector)
        }
        if len(matches) == 1:
            [targets[source, selector]] = matches.values()
            continue
        if matches:
            names = ", ".join(sorted(target.name for target in matches.values()))
            raise UserError(f"{place(source, line)}: {selector} may mean {names}; write more of the name.")
        if source.imports:
            raise UserError(
                f"{place(source, line)}: {selector} is unknown; a file with imports begins with "
                "'from __gin__ import dynamic_registration'."
            )
        hint = did_you_mean(selector, {name.rsplit(".", 1)[-1] for name in known})
        raise UserError(f"{place(source, line)}: no gin file mentions {selector}; {hint}")
    return targets


def _attribute(source: Source, line: int, selector: str) -> Target:
    """Follows a dotted selector from a module that the file imports."""
    head, *rest = selector.split(".")
    if head not in source.imports:
        hint = did_you_mean(head, source.imports, "import its module.")
        raise UserError(f"{place(source, line)}: {selector}: no import provides {head!r}; {hint}")
    module_name, root, import_line = source.imports[head]
    value = _import(source, import_line, module_name, root)
    for depth, name in enumerate(rest):
        if not hasattr(value, name):
            prefix = ".".join([head, *rest[:depth]])
            known = [entry for entry, item in vars(value).items() if callable(item) and not entry.startswith("_")]
            hint = did_you_mean(name, known, "look there for its name.")
            raise UserError(f"{place(source, line)}: {prefix} has no {name}; {hint}")
        value = getattr(value, name)
    if not callable(value):
        raise UserError(f"{place(source, line)}: {selector} is no function and no class, so nothing can be set there.")
    return Target(value, ".".join([root, *rest]))


def _import(source: Source, line: int, module_name: str, root: str):
    """The module object that the bound name stands for."""
    package, _, name = module_name.rpartition(".")
    if package == "codegen2_jax" and name not in ("errors",):
        spec = importlib.util.find_spec(module_name)
        if spec is not None and spec.submodule_search_locations is None:
            raise UserError(
                f"{place(source, line)}: {module_name} is a command; run with -m it would be loaded twice. "
                "Import the library module that has what you need."
            )
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(f"{place(source, line)}: cannot import {module_name}: {error}") from error
    return module if root == module_name else importlib.import_module(root)


class Checked(NamedTuple):
    """What the job is made of, found by following its references."""

    macros: set[str]  # those that matter to it
    bindings: set[int]  # the ids of those Givens that matter to it


def check_bindings(config: Config, targets: dict[tuple[Source, str], Target]) -> Checked:
    """Names and types of every binding, and that whatever the job is made of has all that it requires."""
    effective: dict[Callable, dict[tuple[str, ...], dict[str, Given]]] = {}
    for binding in config.bindings:
        target = targets[binding.given.source, binding.selector].object
        effective.setdefault(target, {}).setdefault(binding.scopes, {})[binding.argument] = binding.given
    for target, scopes in effective.items():
        named, any_keyword = parameters(target)
        for argument, given in ((a, g) for arguments in scopes.values() for a, g in arguments.items()):
            _check_required(given)
            if argument in named:
                _check_value(config, targets, given, named[argument].annotation, f"{argument} of {target.__name__}")
            elif not any_keyword:
                hint = did_you_mean(argument, named)
                raise UserError(f"{given.where}: {target.__name__} has no parameter {argument}; {hint}")
    return _follow(config, targets, effective)


def _follow(config: Config, targets: dict[tuple[Source, str], Target], effective: dict[Callable, dict]) -> Checked:
    """Walks from JOB along references and macros, as gin will; every part on the way must have what it requires."""
    checked, visited = Checked(set(), set()), set()
    job = config.macros["JOB"]
    pending: list[tuple[Any, Given, tuple[str, ...]]] = [(job.value, job, ())]
    checked.macros.add("JOB")
    while pending:
        value, given, scope = pending.pop()
        for part in _leaves(value):
            if isinstance(part, Macro) and part.name not in checked.macros:
                checked.macros.add(part.name)
                pending.append((config.macros[part.name].value, config.macros[part.name], (part.name,)))
            elif isinstance(part, Reference):
                target, within = targets[given.source, part.selector].object, part.scopes or scope
                if (target, within) in visited:
                    continue
                visited.add((target, within))
                bound = {}
                for depth in range(len(within) + 1):
                    bound |= effective.get(target, {}).get(within[:depth], {})
                checked.bindings.update(map(id, bound.values()))
                pending += [(inner.value, inner, within) for inner in bound.values()]
                missing = [
                    name
                    for name, parameter in parameters(target)[0].items()
                    if parameter.default is parameter.empty and name not in bound
                ]
                if part.evaluate and missing:
                    raise UserError(
                        f"{given.where}: {target.__name__} needs {', '.join(missing)}; "
                        f"bind {part.selector}.{missing[0]} in a gin file."
                    )
    return checked


def _leaves(value) -> Iterator:
    """The macros, references and literals of a possibly nested value."""
    if isinstance(value, dict):
        value = (*value, *value.values())
    if isinstance(value, list | tuple) and not isinstance(value, Macro | Reference):
        for entry in value:
            yield from _leaves(entry)
    else:
        yield value


def _check_value(config: Config, targets: dict, given: Given, annotation, what: str) -> None:
    """Raises when the value, or the value of the macro that it names, cannot be of the annotated type."""
    seen = set()
    while isinstance(given.value, Macro):
        if given.value.name in seen:
            raise UserError(f"{given.where}: the macro %{given.name} stands for itself; give it a value.")
        seen.add(given.value.name)
        given = config.macros[given.value.name]
    value = given.value
    if isinstance(value, Reference):
        target = targets[given.source, value.selector].object
        if not value.evaluate and not _takes_callable(annotation) and _fits(target, annotation):
            fixed = given.written_as(given.text + "()")
            raise UserError(f"{given.where}: {what} takes what it makes, not the maker; write {fixed}")
        if not (_fits(target, annotation) if value.evaluate else _takes_callable(annotation)):
            raise UserError(f"{given.where}: {what} takes {describe(annotation)}.")
        return
    leaves = list(_leaves(value))
    if any(isinstance(leaf, Macro | Reference) for leaf in leaves) or accepts(value, annotation):
        return
    remedy = "".join(f"; write {given.written_as(literal(better))}" for better in suggest(value, annotation))
    raise UserError(f"{given.where}: {what} takes {describe(annotation)}{remedy or '.'}")


def _alternatives(annotation) -> list:
    """The parts of a union, or the annotation alone."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _alternatives(typing.get_args(annotation)[0])
    arguments = typing.get_args(annotation)
    is_union = typing.get_origin(annotation) is typing.Union or type(annotation).__name__ == "UnionType"
    return [part for argument in arguments for part in _alternatives(argument)] if is_union else [annotation]


def _takes_callable(annotation) -> bool:
    """Whether @name without parentheses can be meant."""
    plain = (bool, int, float, str, type(None), tuple, list, dict, set, frozenset, typing.Literal)
    for part in _alternatives(annotation):
        origin = typing.get_origin(part) or part
        if origin not in plain and (not inspect.isclass(origin) or origin in (type, object) or _is_interface(origin)):
            return True
    return False


def _is_interface(annotation) -> bool:
    """Any, a protocol or `Callable`: judged by behaviour, which an annotation does not show."""
    return annotation is Any or getattr(annotation, "_is_protocol", False) or annotation.__name__ == "Callable"


def _fits(target, annotation) -> bool:
    """Whether what calling `target` yields can be of the annotated type; True where that cannot be known."""
    made = target if inspect.isclass(target) else _returned(target)
    if not inspect.isclass(made):
        return True
    for part in _alternatives(annotation):
        origin = typing.get_origin(part) or part
        if origin is typing.Literal:
            continue
        if not inspect.isclass(origin) or _is_interface(origin) or issubclass(made, origin):
            return True
    return False


def _returned(function):
    """The resolved return annotation of a function, or Any."""
    try:
        return typing.get_type_hints(function).get("return", Any)
    except (NameError, TypeError, AttributeError):
        return Any
