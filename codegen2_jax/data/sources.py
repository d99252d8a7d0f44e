"""Where text comes from: the interpreter's standard library, installed packages, and the official CodeTask-CL files.

Every reader is deterministic, hashes what it read, and names file and line of whatever it rejects.
"""

import dataclasses
import hashlib
import json
import os
import re
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

from codegen2_jax.errors import UserError

STANDARD_LIBRARY = "cpython"
STANDARD_LIBRARY_LICENCE = "PSF-2.0"

# Never a source: tests, the site folder, build output, an application (idlelib), wheels in a folder (ensurepip).
_LIBRARY_LEFT_OUT = frozenset({
    "__pycache__", "ensurepip", "idlelib", "idle_test", "lib-dynload", "pydoc_data", "site-packages", "dist-packages",
    "test", "tests", "testing", "turtledemo",
})
# Packages that distributors ship apart or that a later 3.x dropped: a task made from them would depend on more than the
# interpreter's version. And encodings: a hundred generated files with the same functions. Still read for pretraining.
_LIBRARY_OPTIONAL = frozenset({"distutils", "encodings", "lib2to3", "tkinter"})

SPLITS = ("train", "valid", "test")
_VALID_PER_MILLE = 70
_TEST_PER_MILLE = 70


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One Python file. path starts with the package's folder and has forward slashes: "cpython/json/decoder.py"."""

    path: str
    package: str
    licence: str
    text: str

    @property
    def digest(self) -> str:
        """sha256 of the text, hexadecimal."""
        return hashlib.sha256(self.text.encode("utf-8")).hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rejected:
    """A row that was read but not used. line counts from 1."""

    file: str
    line: int
    reason: str


def stable_hash(text: str) -> int:
    """A 64-bit hash that is the same in every process and on every machine, unlike hash()."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big")


def split_of(path: str) -> str:
    """The split that a source file feeds: 86 % train, 7 % valid, 7 % test, by a hash of its relative path alone.

    The same file is therefore in the same split under every interpreter version, whatever else is installed.
    """
    position = stable_hash(f"pytask-cl/{path}") % 1000
    if position < _VALID_PER_MILLE:
        return "valid"
    if position < _VALID_PER_MILLE + _TEST_PER_MILLE:
        return "test"
    return "train"


def read_python(path: Path) -> str | None:
    """The text of a Python file with line ends as "\\n", or None when it is not UTF-8 text."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text.replace("\r\n", "\n").replace("\r", "\n")


def standard_library_paths(root: str | os.PathLike | None = None, *, optional: bool = False) -> tuple[Path, ...]:
    """The .py files of the interpreter's standard library, without tests, sorted.

    root is the library's folder (default: this interpreter's, also inside a virtual environment). With optional=True
    the packages that no task is made from (tkinter, distutils, lib2to3, encodings) are there too.
    """
    folder = Path(root if root is not None else sysconfig.get_path("stdlib"))
    left_out = _LIBRARY_LEFT_OUT if optional else _LIBRARY_LEFT_OUT | _LIBRARY_OPTIONAL
    # Files written by the build for one machine are not the same everywhere.
    paths = [path for path in _walk(folder, left_out) if not path.name.startswith("_sysconfigdata")]
    if not paths:
        raise UserError(f"no Python file under {folder}; the standard library must be there as source (.py files).")
    return tuple(sorted(paths))


def standard_library(root: str | os.PathLike | None = None, *, optional: bool = False) -> tuple[SourceFile, ...]:
    """The files of standard_library_paths that are UTF-8 text; a path is "cpython/" and the path in the library."""
    folder = Path(root if root is not None else sysconfig.get_path("stdlib"))
    package, licence = STANDARD_LIBRARY, STANDARD_LIBRARY_LICENCE
    files = []
    for path in standard_library_paths(root, optional=optional):
        text = read_python(path)
        if text is not None:
            name = f"{package}/{path.relative_to(folder).as_posix()}"
            files.append(SourceFile(path=name, package=package, licence=licence, text=text))
    return tuple(sorted(files, key=lambda file: file.path))


def _walk(folder: Path, left_out: frozenset[str]) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in left_out and not name.startswith("config-"))
        yield from (Path(parent, name) for name in sorted(names) if name.endswith(".py"))


def file_digest(path: str | os.PathLike) -> str:
    """sha256 of a file's bytes, hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def require_file(directory: str | None, name: str, *, setting: str) -> Path:
    """directory/name, or a UserError that names the setting (an environment variable or macro) and the missing file."""
    if not directory:
        raise UserError(
            f"{setting} is not set, so {name} cannot be read; give --gin.{setting}=\"'FOLDER'\" or the environment "
            f"variable {setting}."
        )
    path = Path(directory, name)
    if not path.is_file():
        raise UserError(f"{path} is missing; {setting}={directory} must be the folder that holds the official {name}.")
    return path


def require_folder(setting: str) -> str:
    """The folder that the environment variable names, or a UserError that says how to name it."""
    folder = os.environ.get(setting, "")
    if not os.path.isdir(folder):
        state = f"{folder!r} is no folder" if folder else "it is not set"
        raise UserError(f"the environment variable {setting} must name the folder of the official files; {state}.")
    return folder


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file, split on "\\n" only (str.splitlines would split on form feeds and U+2028 too).

    A byte-order mark before the first line is no part of it.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; it must be a file that you may read.") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path} line {line} is not UTF-8 ({error.reason}); the file must be UTF-8 text.") from error
    return text.removesuffix("\n").split("\n") if text else []


def read_parallel(source: Path, target: Path) -> list[tuple[str, str]]:
    """Rows of two parallel text files. Different line counts are an error: every later pair would be wrong."""
    sources, targets = read_lines(source), read_lines(target)
    if len(sources) != len(targets):
        raise UserError(
            f"{source} has {len(sources)} lines but {target} has {len(targets)}; parallel files must have equally many."
        )
    return list(zip(sources, targets, strict=True))


def read_json_lines(path: Path, fields: Sequence[str]) -> tuple[list[tuple[int, dict]], list[Rejected]]:
    """(line number, row) for each JSON object that has all fields, and what was rejected. Blank lines do not count.

    A field must be a string or a list of strings.
    """
    rows, rejected = [], []
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = "nested too deeply" if isinstance(error, RecursionError) else error
            rejected.append(Rejected(file=str(path), line=number, reason=f"malformed JSON: {reason}"))
            continue
        reason = _row_fault(row, fields)
        if reason:
            rejected.append(Rejected(file=str(path), line=number, reason=reason))
        else:
            rows.append((number, row))
    return rows, rejected


def _row_fault(row: object, fields: Sequence[str]) -> str:
    if not isinstance(row, dict):
        return f"a {type(row).__name__} where an object was expected"
    missing = [field for field in fields if field not in row]
    if missing:
        return f"no field {', '.join(missing)}"
    for field in fields:
        value = row[field]
        is_text = isinstance(value, str) or (isinstance(value, list) and all(isinstance(part, str) for part in value))
        if not is_text:
            return f"field {field} is no text"
        if not is_unicode("".join(value)):
            return f"field {field} holds half of a surrogate pair"
    return ""


def is_unicode(text: str) -> bool:
    """Whether the text can be written as UTF-8: JSON can name half of a surrogate pair, which is no character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def normalise_white_space(text: str) -> str:
    """Runs of white space become one space; none at the ends."""
    return re.sub(r"\s+", " ", text).strip()


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextExample:
    """One example of a text-to-text task before tokenisation."""

    id: str
    inputs: str
    targets: str
