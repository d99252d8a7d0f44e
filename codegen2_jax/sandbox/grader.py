"""Judges one program in a fresh process: runs the trusted tests, whose functions are stubs that call into the jail.

Names that the tests use and do not define are looked up in the solution: a function or class becomes a stub, a plain
value is copied, a module of the standard library's harmless part is imported here. Built-in names stay Python's own,
but for the entry point. Instances of the solution's classes stay in the jail; the tests hold `Remote` objects, which
equal nothing but themselves.
"""

import ast
import builtins
import os
import types

from codegen2_jax.sandbox import wire
from codegen2_jax.sandbox.jail import Ended, Jail, exit_text, printable

# What a solution may have imported and the tests then use. Importing any of these has no effect but names.
MODULES = frozenset(
    "bisect cmath collections copy datetime decimal fractions functools heapq itertools json math operator random re "
    "statistics string sys typing".split()
)


class Remote:
    """An object that stays in the jail: attributes and methods are the solution's, comparisons are not."""

    __slots__ = ("_stubs", "_number")

    def __init__(self, stubs, number):
        object.__setattr__(self, "_stubs", stubs)
        object.__setattr__(self, "_number", number)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        answer = self._stubs.ask({"do": "get", "object": self._number, "name": name})
        if answer.get("method") is True:
            return self._stubs.function("method", name, self._number)
        return self._stubs.value(answer)

    def __setattr__(self, name, value):
        self._stubs.ask({"do": "set", "object": self._number, "name": name, "value": self._stubs.encode(value)})


class Stubs:
    """Makes stand-ins for what lives in the jail, and remembers what the solution raised."""

    def __init__(self, jail):
        self.jail = jail
        self.raised = []
        self.remotes = {}
        self.used = False

    def function(self, do, name, number=None):
        """A function of the solution, or a method of one of its objects."""

        def call(*arguments, **named):
            self.used = True
            given = [list(arguments), named]
            message = {"do": do, "name": name, "arguments": self.encode(given)}
            answer = self.ask(message if number is None else {**message, "object": number})
            if "arguments" in answer:
                update(given, self.decode(answer["arguments"]))
            return self.value(answer)

        call.__name__ = call.__qualname__ = name
        return call

    def ask(self, message):
        answer = self.jail.ask(message)
        if "raised" in answer:
            raise self._exception(answer["raised"])
        return answer

    def value(self, answer):
        if "value" not in answer:
            self.jail.end("violation", "protocol: an answer without a value")
        return self.decode(answer["value"])

    def encode(self, value):
        try:
            return wire.encode(value, lambda item: item._number if type(item) is Remote else None)
        except wire.WireError as error:
            self.jail.end("error", f"protocol: the tests send what cannot be sent: {printable(error)}")

    def decode(self, data):
        try:
            return wire.decode(data, self._remote)
        except wire.WireError as error:
            self.jail.end("violation", f"protocol: {printable(error)}")

    def _remote(self, number):
        return self.remotes.setdefault(number, Remote(self, number))

    def _exception(self, parts):
        """The solution's exception for the tests to catch: the nearest built-in class with its text."""
        if type(parts) is not list or [type(part) for part in parts] != [str, str, str]:
            self.jail.end("violation", "protocol: an exception without a name")
        known, own, text = parts
        kind = getattr(builtins, known, None)
        usable = isinstance(kind, type) and issubclass(kind, Exception)
        if not usable or issubclass(kind, StopIteration | StopAsyncIteration):  # those would end a loop of the tests
            kind = RuntimeError
        try:
            error = kind(text)
        except TypeError:  # such as UnicodeDecodeError, which takes five arguments
            error = RuntimeError(text)
        self.raised.append((error, f"exception: {printable(own)}: {printable(text)}"))
        return error


def update(old, new):
    """Makes `old` equal to `new` in place, as far down as both are the same kind of container."""
    if type(old) is not type(new):
        return
    if type(old) is list or type(old) is tuple:
        both = min(len(old), len(new))
        for position in range(both):
            if _is_container(old[position]) and type(old[position]) is type(new[position]):
                update(old[position], new[position])
            elif type(old) is list:
                old[position] = new[position]
        if type(old) is list:
            old[both:] = new[both:]
    elif isinstance(old, dict):
        kept = {key: old[key] for key in new if key in old and type(old[key]) is type(new[key])}
        old.clear()
        for key, value in new.items():
            if key in kept and _is_container(kept[key]):
                update(kept[key], value)
                value = kept[key]
            old[key] = value
    elif hasattr(old, "clear") and type(old) is not frozenset:
        old.clear()
        (old.update if type(old) is set else old.extend)(new)


def _is_container(value):
    return isinstance(value, list | tuple | dict | set | bytearray) or hasattr(value, "appendleft")


def judge(request):
    """The verdict, as a dictionary, on the program of a keeper's request."""
    jail, outcome, detail = None, "infra", ""
    try:
        jail = Jail.__new__(Jail)
        jail.__init__(request["line"], **request["jail"])
        program = request["program"]
        if request["execute"]:
            outcome, detail = _execute(jail, request["execute"])
        elif program["style"] == "output":
            outcome, detail = _output(jail, program)
        else:
            outcome, detail = _calls(jail, program)
            if outcome == "passed":
                jail.close()
    except Ended as ended:
        outcome, detail = ended.outcome, ended.detail
    except OSError as error:
        outcome, detail = "infra", f"the jail did not start: {printable(error)}"
    if jail.ended is not None:  # even where a test has swallowed it
        outcome, detail = jail.ended.outcome, jail.ended.detail
    jail.kill()
    return {
        "outcome": outcome,
        "detail": detail,
        "cpu_seconds": round(max(0.0, jail.cpu_seconds), 6),
        "wall_seconds": round(jail.wall_seconds, 6),
        **{name: bytes(text).decode("utf-8", "replace") for name, text in jail.printed.items()},
    }


def _output(jail, program):
    code, answers = jail.run_to_the_end({"do": "main", "source": program["solution"]})
    for answer in answers[:1]:
        if answer.get("memory") is True:
            return "memory", "memory: an allocation beyond the limit"
        if type(answer.get("raised")) is list:
            return "error", "exception: " + ": ".join(printable(part) for part in answer["raised"][1:])
    return ("passed", "") if code == 0 else ("error", f"exited: {exit_text(code)}")


def _execute(jail, execute):
    """A program in another language: passed if its launcher, which alone knows the token, says so at the end."""
    token = os.urandom(16).hex()
    code, _ = jail.run_to_the_end({"do": "execute", **execute}, f"{token}\n".encode())
    said = jail.take_last_line(token)
    if said == "passed":
        return ("passed", "") if code == 0 else ("error", f"exited: {exit_text(code)} after the tests")
    known = {"failed": "wrong", "error": "exception", "memory": "memory", "compile": "exception: does not compile"}
    kind, _, text = said.partition(" ")
    if kind in known:
        return "error" if kind == "compile" else kind, f"{known[kind]}: {printable(text)}"
    if code != 0 and b"heap out of memory" in jail.printed["stderr"]:  # Node.js aborts
        return "memory", "memory: an allocation beyond the limit"
    return "error", f"exited: {exit_text(code)} before the tests ended"


def _calls(jail, program):
    try:
        prelude = compile(program["trusted_prelude"], "<prelude>", "exec")
        tree = ast.parse(program["tests"], "<tests>")
        tests = compile(tree, "<tests>", "exec")
    except (SyntaxError, ValueError) as error:
        return "infra", f"tests: they do not compile: {printable(error)}"
    entry_point, stubs = program["entry_point"], Stubs(jail)
    module = types.ModuleType("__main__")
    names = module.__dict__
    try:
        exec(prelude, names)
    except Exception as error:
        return "infra", f"tests: the trusted prelude raises {type(error).__name__}: {printable(error)}"
    wanted = {entry_point} | {name for name in _names_of(tests) if name not in names and not hasattr(builtins, name)}
    try:
        loaded = stubs.ask({"do": "load", "source": program["solution"], "names": sorted(wanted)})
    except Exception:
        return "error", stubs.raised[-1][1]
    names |= _stand_ins(stubs, loaded, wanted)
    if entry_point not in names and entry_point not in _top_level(tree):
        return "error", f"exception: NameError: the solution does not define {entry_point}"
    if "candidate" not in names and entry_point in names:
        names["candidate"] = names[entry_point]
    try:
        exec(tests, names)
        if _waits_for_check(tree):
            names["check"](names[entry_point])
    except Exception as error:
        return _outcome_of(error, stubs)
    except SystemExit:
        return "failed", "wrong: the tests called exit"
    if not stubs.used:
        return "error", f"exception: the tests ended without a call of {entry_point}"
    return "passed", ""


def _outcome_of(error, stubs):
    for raised, detail in stubs.raised:
        if raised is error:
            return "error", detail
    place = error.__traceback__
    while place.tb_next is not None and place.tb_next.tb_frame.f_code.co_filename == "<tests>":
        place = place.tb_next
    return "failed", f"wrong: {type(error).__name__} in line {place.tb_lineno} of the tests: {printable(error)}"


def _stand_ins(stubs, loaded, wanted):
    """What the jail has of the names it was asked for; with others it could take the place of the tests' own."""
    kinds, values = loaded.get("kinds"), loaded.get("values")
    if type(kinds) is not dict or type(values) is not dict:
        stubs.jail.end("violation", "protocol: no list of names")
    if not wanted.issuperset(kinds):
        stubs.jail.end("violation", "protocol: names that were not asked for")
    found = {}
    for name, kind in kinds.items():
        if kind == "callable":
            found[name] = stubs.function("call", name)
        elif kind == "value":
            found[name] = stubs.decode(values.get(name))
            stubs.used = True
        elif kind == "module" and values.get(name) in MODULES:
            found[name] = __import__(values[name])
    return found


def _names_of(code):
    """All names that a code object and those inside it use; attributes among them, which does no harm."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names_of(constant)
    return names


def _top_level(tree):
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def _waits_for_check(tree):
    """Whether the tests define `check(candidate)` and leave the call to us."""
    called = [
        node.value.func.id
        for node in tree.body
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name)
    ]
    return "check" in _top_level(tree) and "check" not in called
