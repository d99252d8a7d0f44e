"""Texts as hashes of windows of consecutive tokens, made equal over what formatting or renaming changes.

| kind | tokens compared | window |
|---|---|---:|
| verbatim | words and signs, each with the white space before it | 10 |
| reformatted | words and signs without comments, quotes, round brackets and commas | 10 |
| renamed | the same; a name is how far back it stood last in the window (Baker's parameterised matching) | 16 |

Names are identifiers that are no keyword, no common builtin, behind no dot and outside of strings; prose has none.
"""

import dataclasses
import keyword
import re
from collections.abc import Collection
from pathlib import PurePosixPath

import numpy as np

from codegen2_jax.data.near_duplicates import mix, token_hashes, window_hashes

KINDS = ("verbatim", "reformatted", "renamed")
WINDOWS = {"verbatim": 10, "reformatted": 10, "renamed": 16}

PYTHON, SLASHES, HASHES, PROSE = "python", "slashes", "hashes", "prose"
"""Families of languages by their comments: Python; // and /* */ (Java, C#, C, JavaScript); # (Ruby, shell); none."""
_FAMILIES = {
    PYTHON: "py pyi pyx",
    SLASHES: "java cs js jsx ts tsx c h cc cpp hpp cxx go rs kt swift php scala m dart",
    HASHES: "rb sh bash pl r yaml yml toml jl tcl",
    PROSE: "md txt rst tex html",
}
_FAMILY_OF = {suffix: family for family, suffixes in _FAMILIES.items() for suffix in suffixes.split()}

_LINE_STRINGS = r"\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'"
_PYTHON_STRINGS = r"\"\"\"(?:[^\\]|\\.)*?(?:\"\"\"|\Z)|'''(?:[^\\]|\\.)*?(?:'''|\Z)|" + _LINE_STRINGS
_STRINGS_AND_COMMENTS = {
    PYTHON: re.compile(rf"(?:\b[rRbBuUfF]{{1,2}})?({_PYTHON_STRINGS})|#[^\n]*|\\\n", re.DOTALL),
    SLASHES: re.compile(rf"({_LINE_STRINGS})|//[^\n]*|/\*.*?(?:\*/|\Z)", re.DOTALL),
    HASHES: re.compile(rf"({_LINE_STRINGS})|#[^\n]*", re.DOTALL),
}
# Quotes, round brackets and commas are left to formatters, which exchange, add and drop them.
_TOKEN = re.compile(r"\w+|[^\w\s\"'`(),]")
_TOKEN_WITH_SPACE = re.compile(r"\s*(?:\w+|[^\w\s])")
_OPEN, _CLOSE = "\x01", "\x02"  # stand for quotes until it is known which tokens are inside a string
_KEPT_NAMES = frozenset(keyword.kwlist) | frozenset("""
    self cls super print len range str int float bool list dict set tuple bytes object type isinstance sorted sum min
    max abs any all map filter zip enumerate reversed open input round Exception ValueError TypeError KeyError
    IndexError public private protected static final void new this null true false try catch throw throws switch case
    default do boolean char byte short long double String Object Integer Boolean List Map Set var const let function
    typeof instanceof extends implements interface abstract enum package namespace using virtual override sealed
    readonly ref out string decimal foreach base struct get value params internal end nil unless elsif then module
    require begin rescue ensure yield puts attr_accessor undefined delete export of
""".split())  # fmt: skip


def family_of(path: str, text: str = "") -> str:
    """The family of a file by its suffix; of a text without a known suffix by how it looks."""
    suffix = PurePosixPath(path.partition("::")[0]).suffix.lstrip(".").lower()
    if suffix in _FAMILY_OF:
        return _FAMILY_OF[suffix]
    head = text[:4000]
    if re.search(r"^\s*(async def|def|class)\s+\w+.*:\s*(#.*)?$|^(import|from)\s+\w[\w.]*( import .*)?$", head, re.M):
        return PYTHON
    if re.search(r"[;{}]\s*$|\)\s*\{|;\s*\}", head, re.M):
        return SLASHES
    return HASHES if re.search(r"^\s*(def|module|class)\s+\w.*$|\bend\s*$", head, re.M) else PROSE


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodeTokens:
    """Tokens of a text without comments and quotes; is_name_N bool tells which of them may be renamed."""

    tokens: list[str]
    is_name_N: np.ndarray


def code_tokens(text: str, family: str) -> CodeTokens:
    """The tokens that formatting cannot change, with the names among them. The text need not parse.

    For Python these are the tokens of the standard library's tokenize with strings split into words: a test holds the
    two equal; one regular expression is several times faster, and does not depend on the interpreter's version.
    """
    if family == PROSE:
        tokens = _TOKEN.findall(text)
        return CodeTokens(tokens=tokens, is_name_N=np.zeros(len(tokens), bool))

    def mark(found: re.Match) -> str:
        if found[1] is None:
            return " "
        width = 3 if found[1][:3] in ('"""', "'''") else 1
        return f" {_OPEN}{found[1][width:].removesuffix(found[1][:width])}{_CLOSE} "

    marked = _TOKEN.findall(_STRINGS_AND_COMMENTS[family].sub(mark, text))
    tokens, names = [], []
    inside, previous = False, ""
    for token in marked:
        if token in (_OPEN, _CLOSE):
            inside = token == _OPEN
        else:
            names.append(not inside and previous != "." and token not in _KEPT_NAMES and _is_identifier(token))
            tokens.append(token)
        previous = token
    return CodeTokens(tokens=tokens, is_name_N=np.array(names, bool))


def _is_identifier(token: str) -> bool:
    return token[0] == "_" or token[0].isalpha()


def renamed_windows(hash_N: np.ndarray, is_name_N: np.ndarray, size: int) -> np.ndarray:
    """uint64 [N - size + 1] window hashes that a consistent renaming does not change; empty where N < size."""
    count = len(hash_N) - size + 1
    if count <= 0:
        return np.zeros(0, np.uint64)
    role_N = np.where(is_name_N, hash_N, ~hash_N)  # `size` and `.size` are two things
    order = np.argsort(role_N, kind="stable")
    same = role_N[order[1:]] == role_N[order[:-1]]
    back_N = np.full(len(hash_N), len(hash_N), np.uint64)
    back_N[order[1:][same]] = (order[1:] - order[:-1])[same]
    new, total = np.uint64(0), np.zeros(count, np.uint64)
    for offset in range(size):
        at = slice(offset, offset + count)
        code = np.where(is_name_N[at], np.where(back_N[at] <= offset, back_N[at], new), hash_N[at])
        total = mix(total + code)
    return total


def windows(text: str, family: str, kinds: Collection[str] = KINDS) -> dict[str, np.ndarray]:
    """{kind: uint64 window hashes}, none for a text shorter than a window."""
    found = {}
    if "verbatim" in kinds:
        found["verbatim"] = _windows(token_hashes(_TOKEN_WITH_SPACE.findall(text)), WINDOWS["verbatim"])
    if "reformatted" in kinds or "renamed" in kinds:
        code = code_tokens(text, family)
        hash_N = token_hashes(code.tokens)
        found["reformatted"] = _windows(hash_N, WINDOWS["reformatted"])
        if family != PROSE and "renamed" in kinds:
            found["renamed"] = renamed_windows(hash_N, code.is_name_N, WINDOWS["renamed"])
    return {kind: found.get(kind, np.zeros(0, np.uint64)) for kind in kinds}


def _windows(hash_N: np.ndarray, size: int) -> np.ndarray:
    return window_hashes(hash_N, size) if len(hash_N) >= size else np.zeros(0, np.uint64)
