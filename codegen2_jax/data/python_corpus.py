"""The pretraining corpus of nano-t5: the standard library and the permissively licensed packages of the environment.

Left out: every file behind PyTask-CL's valid and test splits, and every file, of any package, that contains one of
their functions. Nothing here knows a vocabulary; texts go out as strings.
"""

import collections
import dataclasses
import hashlib
import importlib.metadata
import os
import platform
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from codegen2_jax.data.bug_injection import abstracted
from codegen2_jax.data.javascript.from_python import to_javascript
from codegen2_jax.data.javascript.syntax import Unsupported
from codegen2_jax.data.python_functions import (
    Limits,
    PythonFunction,
    functions_of,
    generation_prompt,
    is_short,
    is_trivial,
    parse,
)
from codegen2_jax.data.sources import (
    STANDARD_LIBRARY,
    STANDARD_LIBRARY_LICENCE,
    SourceFile,
    read_python,
    split_of,
    stable_hash,
    standard_library,
)

# SPDX identifiers whose terms allow use and redistribution with attribution only.
PERMISSIVE_LICENCES = frozenset({
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSD", "BSL-1.0", "CC0-1.0", "CNRI-Python", "HPND", "ISC",
    "MIT", "MIT-0", "MIT-CMU", "PSF-2.0", "Python-2.0", "Unlicense", "Zlib",
})
# Ordered: the first pattern that occurs in a classifier or in a free-text licence field names it.
_LICENCE_PATTERNS = (
    (r"mozilla|\bmpl\b", "MPL-2.0"),
    (r"gnu|\b[al]?gpl", "GPL"),
    (r"apache", "Apache-2.0"),
    (r"\bisc\b", "ISC"),
    (r"unlicense", "Unlicense"),
    (r"python software foundation|\bpsf\b", "PSF-2.0"),
    (r"\bmit\b", "MIT"),
    (r"\b(3-clause bsd|bsd[- ]3|new bsd|modified bsd)", "BSD-3-Clause"),
    (r"\bbsd\b", "BSD"),
)
_FOLDERS_LEFT_OUT = re.compile(r"(^|/)(_?tests?|testing|_?vendor(ed)?|third_party|extern(al)?|node_modules)/")
_FILES_LEFT_OUT = re.compile(r"(^|/)(test_[^/]*|[^/]*_(test|tests|pb2|pb2_grpc)|conftest|testing)\.py$")
_GENERATED = re.compile(r"do not edit|auto(matically)?[- ]?generated|generated (by|from|automatically)", re.IGNORECASE)

MAX_PACKAGE_CHARACTERS = 2_000_000
MAX_FILE_CHARACTERS = 150_000
MIN_FILE_CHARACTERS = 200
MAX_LINE_CHARACTERS = 400
MIN_STATEMENTS_COMPARED = 3
HELD_OUT = "behind PyTask-CL's valid or test split"
# Twice PyTask-CL's own limits: more pairs, and the model's window cuts what does not fit.
PAIR_LIMITS = Limits(body_lines=20, body_characters=600)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """A docstring and its code.

    kind "function": the first sentence and the whole function; "body": sentences with the signature, and the body.
    """

    id: str
    kind: str
    text: str
    code: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """What was gathered. left_out maps a path to its reason; held_out lists the digests that must never be in files."""

    files: tuple[SourceFile, ...]
    left_out: dict[str, str]
    held_out: dict[str, str]
    licences: tuple[tuple[str, str, str, int, int], ...]


def licence_of(distribution: importlib.metadata.Distribution) -> str:
    """The SPDX expression of a distribution, from License-Expression, else its classifiers, else its License field.

    "" when none of them says anything. Several classifiers are joined by AND: all must be permissive.
    """
    metadata = distribution.metadata
    expression = metadata.get("License-Expression")
    if expression:
        return expression
    classifiers = [value for value in metadata.get_all("Classifier", []) if value.startswith("License ::")]
    named = [_licence_named(value.rsplit("::", 1)[-1]) for value in classifiers]
    named = sorted({name for name in named if name})
    if named:
        return " AND ".join(named)
    # A whole licence text in the field: its head names it, its middle may mention others.
    return _licence_named((metadata.get("License") or "")[:100])


def _licence_named(text: str) -> str:
    for pattern, name in _LICENCE_PATTERNS:
        if re.search(pattern, text, re.IGNORECASE):
            return name
    return ""


def is_permissive(expression: str) -> bool:
    """Whether an SPDX expression binds us to permissive licences only: of an OR one side is enough, of an AND all."""
    if not expression:
        return False
    clauses = re.split(r"\s+AND\s+", expression.replace("(", " ").replace(")", " ").strip())
    return all(
        any(part.split(" WITH ")[0].strip() in PERMISSIVE_LICENCES for part in re.split(r"\s+OR\s+", clause))
        for clause in clauses
    )


def installed_packages(left_out: Sequence[str] = ("codegen2-jax", "codegen2_jax")) -> Iterator[tuple[str, str, list]]:
    """(name, licence expression, [(relative path, absolute path)]) of every installed distribution, sorted by name."""
    seen = set(left_out)
    distributions = importlib.metadata.distributions()
    for distribution in sorted(distributions, key=lambda one: (one.metadata["Name"] or "").lower()):
        name = distribution.metadata["Name"]
        if not name or name in seen:
            continue
        seen.add(name)
        paths = [(file.as_posix(), file.locate()) for file in distribution.files or () if file.suffix == ".py"]
        yield name, licence_of(distribution), sorted(path for path in paths if not path[0].startswith(".."))


def file_fault(path: str, text: str) -> str:
    """Why a file is no good for pretraining; "" when it is."""
    if _FOLDERS_LEFT_OUT.search(path) or _FILES_LEFT_OUT.search(path):
        return "test or vendored code"
    if not MIN_FILE_CHARACTERS <= len(text) <= MAX_FILE_CHARACTERS:
        return f"length outside {MIN_FILE_CHARACTERS}..{MAX_FILE_CHARACTERS} characters"
    if _GENERATED.search(text[:2000]):
        return "generated"
    if max(map(len, text.splitlines()), default=0) > MAX_LINE_CHARACTERS:
        return "minified or data: a line is too long"
    letters = sum(character.isalpha() or character.isspace() for character in text)
    if letters < 0.6 * len(text):
        return "data: too few letters"
    return ""


def held_out_functions(files: Iterable[SourceFile]) -> frozenset[str]:
    """Fingerprints of the functions of at least 3 statements in the files behind the valid and test splits."""
    return frozenset(
        function.fingerprint
        for file in files
        for function in functions_of(file)
        if function.num_statements >= MIN_STATEMENTS_COMPARED
    )


def gather(
    packages: Iterable[tuple[str, str, list]] | None = None,
    *,
    library_root: str | os.PathLike | None = None,
    max_package_characters: int = MAX_PACKAGE_CHARACTERS,
) -> Corpus:
    """All files of the corpus, sorted by path. Reads and parses some 70 MB: a minute or two.

    packages (default: installed_packages()) are tuples (name, licence expression, [(relative path, absolute path)]);
    library_root is the standard library's folder (default: this interpreter's), which is taken whole.
    """
    library = standard_library(library_root, optional=True)
    evaluated = [file for file in standard_library(library_root) if split_of(file.path) != "train"]
    held_out = {file.digest: file.path for file in evaluated}
    functions = held_out_functions(evaluated)
    kept: dict[str, SourceFile] = {}
    left_out: dict[str, str] = {file.path: HELD_OUT for file in evaluated}
    licences = []
    whole = sum(len(file.text) for file in library)
    sources = [(STANDARD_LIBRARY, STANDARD_LIBRARY_LICENCE, library, whole)]
    for name, licence, paths in installed_packages() if packages is None else packages:
        if is_permissive(licence):
            # By hash, so that a package over its cap gives a fair sample instead of the head of the alphabet.
            ordered = sorted(paths, key=lambda item: stable_hash(item[0]))
            sources.append((name, licence, _read_all(ordered, name, licence, left_out), max_package_characters))
        elif paths:
            left_out[f"{name} ({len(paths)} files)"] = f"licence {licence or 'unknown'}"
    for name, licence, files, room in sources:
        taken = size = 0
        for file in files:
            if file.path in left_out:
                continue
            # Cheap reasons first: parsing what the cap drops anyway would take most of the time.
            reason = _text_fault(file, kept, held_out)
            if not reason and size + len(file.text) > room:
                reason = f"over the package's cap of {room} characters"
            reason = reason or _code_fault(file, functions)
            if reason:
                left_out[file.path] = reason
                continue
            kept[file.digest] = file
            taken, size = taken + 1, size + len(file.text)
        licences.append((name, _version(name), licence, taken, size))
    ordered = tuple(sorted(kept.values(), key=lambda file: file.path))
    return Corpus(files=ordered, left_out=left_out, held_out=held_out, licences=tuple(licences))


def _read_all(paths: list, package: str, licence: str, left_out: dict[str, str]) -> Iterator[SourceFile]:
    for path, location in paths:
        location = Path(location)
        text = read_python(location) if location.is_file() else None
        if text is None:
            left_out[path] = "missing or no UTF-8 text"
        else:
            yield SourceFile(path=path, package=package, licence=licence, text=text)


def _text_fault(file: SourceFile, kept: dict, held_out: dict) -> str:
    # A fault first: an empty __init__.py has the same digest as a held-out one, and is no held-out file.
    fault = file_fault(file.path, file.text)
    if not fault and file.digest in held_out:
        return HELD_OUT
    if not fault and file.digest in kept:
        return f"the same as {kept[file.digest].path}"
    return fault


def _code_fault(file: SourceFile, held_out: frozenset[str]) -> str:
    tree = parse(file.text)
    if tree is None:
        return "does not parse"
    for function in functions_of(file, tree):
        if function.num_statements >= MIN_STATEMENTS_COMPARED and function.fingerprint in held_out:
            return f"contains a function of PyTask-CL's valid or test files: {function.name.partition('::')[2]}"
    return ""


def _version(package: str) -> str:
    if package == STANDARD_LIBRARY:
        return platform.python_version()
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def windows(text: str, *, max_characters: int = 480, min_characters: int = 80) -> Iterator[str]:
    """Raw code, comments and docstrings included, cut at line ends into pieces of at most max_characters.

    Pieces break before a def, class or decorator where one comes in the second half; common indentation is taken off,
    so that a method looks like a function. A piece shorter than min_characters is dropped.
    """
    lines = [line.rstrip() for line in text.expandtabs(4).split("\n")]
    piece: list[str] = []
    size = 0
    for line in lines:
        starts = bool(re.match(r"\s*(def|class|async def|@)", line))
        if piece and (size + len(line) + 1 > max_characters or (starts and size > max_characters // 2)):
            yield from _piece(piece, min_characters)
            piece, size = [], 0
        if len(line) < max_characters:
            piece.append(line)
            size += len(line) + 1
    yield from _piece(piece, min_characters)


def _piece(lines: list[str], min_characters: int) -> Iterator[str]:
    text = re.sub(r"\n{3,}", "\n\n", textwrap.dedent("\n".join(lines)).strip("\n"))
    if len(text) >= min_characters:
        yield text


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileTexts:
    """All pretraining texts of a file. javascript and abstracted hold (id, text), unpaired."""

    windows: tuple[str, ...]
    pairs: tuple[Pair, ...]
    javascript: tuple[tuple[str, str], ...]
    abstracted: tuple[tuple[str, str], ...]


def texts_of(file: SourceFile, *, limits: Limits = PAIR_LIMITS) -> FileTexts:
    """Windows of the file; pairs, JavaScript and abstracted code of its functions that are short and say something."""
    tree = parse(file.text)
    functions = [
        function for function in functions_of(file, tree) if is_short(function, limits) and not is_trivial(function)
    ]
    return FileTexts(
        windows=tuple(windows(file.text)),
        pairs=tuple(pairs(functions)),
        javascript=tuple(javascript_texts(functions)),
        abstracted=tuple((f"{function.name}/abstracted", abstracted(function.text)) for function in functions),
    )


def pairs(functions: Iterable[PythonFunction]) -> Iterator[Pair]:
    """Docstring and function, docstring + signature and body, in the text formats of PyTask-CL."""
    for function in functions:
        if function.sentence:
            yield Pair(id=f"{function.name}/function", kind="function", text=function.sentence, code=function.text)
            yield Pair(id=f"{function.name}/body", kind="body", text=generation_prompt(function), code=function.body)


def javascript_texts(functions: Iterable[PythonFunction]) -> Iterator[tuple[str, str]]:
    """(id, JavaScript) of the functions that can be written as such: text in that language, without its Python."""
    for function in functions:
        try:
            yield f"{function.name}/javascript", to_javascript(function.node, in_class=function.in_class)
        except Unsupported:
            continue


def digest_lines(corpus: Corpus) -> str:
    """One line a file: "sha256  path" for those kept, then "held-out sha256  path" for those it must not hold."""
    kept = [f"{file.digest}  {file.path}" for file in corpus.files]
    by_path = sorted(corpus.held_out.items(), key=lambda item: item[1])
    return "\n".join([*kept, *(f"held-out {digest}  {path}" for digest, path in by_path)]) + "\n"


def corpus_digest(corpus: Corpus) -> str:
    """sha256 over digest_lines: names the corpus in a model card."""
    return hashlib.sha256(digest_lines(corpus).encode("utf-8")).hexdigest()


def licence_table(corpus: Corpus) -> str:
    """A Markdown table: package, version, licence, files, characters; the largest first."""
    rows = sorted((row for row in corpus.licences if row[3]), key=lambda row: (-row[4], row[0]))
    body = [f"| {name} | {version} | {licence} | {files} | {size:,} |" for name, version, licence, files, size in rows]
    total = f"| total | | | {sum(row[3] for row in rows)} | {sum(row[4] for row in rows):,} |"
    return "\n".join(["| package | version | licence | files | characters |", "|---|---|---|---:|---:|", *body, total])


def left_out_counts(corpus: Corpus) -> dict[str, int]:
    """How many files (or, for a licence, packages) were left out for each reason; names inside a reason are dropped."""
    reasons = (re.sub(r"(?<=the same as ).*|(?<=test files: ).*", "...", reason) for reason in corpus.left_out.values())
    return dict(collections.Counter(reasons).most_common())
