"""Documents out of files: folders, JSON lines and parquet files, on this machine or on the Hub, one at a time.

What cannot be read is a document too, with a fault and without text.
"""

import dataclasses
import fnmatch
import functools
import gzip
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from codegen2_jax.errors import UserError

FOLDERS_LEFT_OUT = frozenset({"__pycache__", "node_modules", "site-packages"})  # and all that begin with a dot


@dataclasses.dataclass(frozen=True, kw_only=True)
class Document:
    """One document. id is its path or the name of its row; fault, where there is one, says why it cannot be used.

    split_by decides the split, by a hash: the id unless something else is given.
    """

    id: str
    text: str = ""
    licence: str | tuple[str, ...] | None = None
    fault: str = ""
    split_by: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """A part of a source. paths are its files; those of a Hub repository are fetched when the shard is read."""

    name: str
    paths: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowFields:
    """Names of a row's fields: the text, its name and its licence, None for what rows do not have."""

    text: str
    id: str | None = None
    licence: str | None = None


def decoded(data: bytes) -> tuple[str, str]:
    """(text, "") or ("", fault)."""
    if b"\0" in data:
        return "", "binary (has a NUL byte)"
    try:
        return with_line_feeds(data.decode("utf-8-sig")), ""
    except UnicodeDecodeError:
        return "", "not UTF-8 text"


def with_line_feeds(text: str) -> str:
    """The text with line ends as "\\n"."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def too_long(max_bytes: int) -> str:
    """The fault of a document of more bytes."""
    return f"longer than {max_bytes} bytes"


def find_files(folder: Path, extensions: Sequence[str]) -> Iterator[str]:
    """Paths of the files below a folder that end in one of the extensions, in no order that means something."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no directory; path must name the folder with the documents.")
    endings = tuple(f".{extension.lstrip('.').lower()}" for extension in extensions)
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in FOLDERS_LEFT_OUT and not name.startswith("."))
        yield from (os.path.join(parent, name) for name in sorted(names) if name.lower().endswith(endings))


def file_document(path: str, folder: str, max_bytes: int) -> Document:
    """A file of a folder as a document named by its path in it."""
    name = os.fsencode(os.path.relpath(path, folder)).decode("utf-8", "backslashreplace").replace(os.sep, "/")
    if not Path(path).resolve().is_relative_to(Path(folder).resolve()):
        return Document(id=name, fault="a link out of the directory")
    try:
        if os.path.getsize(path) > max_bytes:  # spares reading what is left out anyway
            return Document(id=name, fault=too_long(max_bytes))
        text, fault = decoded(Path(path).read_bytes())
    except OSError as error:
        return Document(id=name, fault=f"cannot be read: {error.strerror}")
    return Document(id=name, text=text, fault=fault)


def _open_lines(path: str) -> IO[bytes]:
    if path.endswith(".gz"):
        return gzip.open(path, "rb")
    if path.endswith(".zst"):
        try:
            import zstandard
        except ImportError:
            raise UserError(f"{path} needs the zstandard package; pip install zstandard, or unpack the file.") from None
        return io.BufferedReader(zstandard.open(path, "rb"))  # which cannot be iterated over itself
    return open(path, "rb")


def json_documents(path: str, fields: RowFields) -> Iterator[Document]:
    """The rows of a file of JSON lines, as they are or compressed (.gz, .zst)."""
    number = 0
    try:
        with _open_lines(path) as lines:
            for number, line in enumerate(lines, start=1):
                name = f"{os.path.basename(path)}:{number}"
                if not line.strip():
                    continue
                try:
                    row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                except UnicodeDecodeError:
                    yield Document(id=name, fault="not UTF-8 text")
                except RecursionError:
                    yield Document(id=name, fault="malformed JSON: nested too deeply")
                except ValueError as error:
                    yield Document(id=name, fault=f"malformed JSON: {error}")
                else:
                    yield _row_document(name, row, fields)
    except (EOFError, OSError, _zstandard_error()) as error:
        raise UserError(f"{path} is damaged behind line {number}: {error}; fetch or write it again.") from error


def _zstandard_error() -> type[Exception]:
    try:
        from zstandard import ZstdError
    except ImportError:
        return EOFError
    return ZstdError


def _row_document(name: str, row: object, fields: RowFields) -> Document:
    if not isinstance(row, Mapping):
        return Document(id=name, fault=f"a {type(row).__name__} where an object was expected")
    if fields.id and row.get(fields.id) is not None:
        name = str(row[fields.id])
    text, licence = row.get(fields.text), row.get(fields.licence) if fields.licence else None
    if not isinstance(text, str):
        return Document(id=name, fault=f"no text in the field {fields.text}")
    try:
        text, fault = decoded(text.encode("utf-8"))
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can write
        text, fault = "", "not UTF-8 text"
    licence = tuple(map(str, licence)) if isinstance(licence, (list, tuple)) else licence and str(licence)
    # A number in a file says nothing about a row that was given no name: its text does.
    return Document(id=name, text=text, licence=licence, fault=fault, split_by="" if fields.id else text)


def parquet_documents(path: str, name: str, fields: RowFields) -> Iterator[Document]:
    """The rows of a parquet file; a row without an id is called by the file's `name` and its number."""
    import pyarrow
    import pyarrow.parquet

    columns = [field for field in (fields.text, fields.id, fields.licence) if field]
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            missing = [field for field in columns if field not in file.schema_arrow.names]
            if missing:
                raise UserError(f"{path} has no column {missing[0]}; its columns are {file.schema_arrow.names}.")
            number = 0
            for batch in file.iter_batches(batch_size=64, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield _row_document(f"{name}:{number}", row, fields)
    except (pyarrow.ArrowException, OSError) as error:
        message = str(error).partition("\n")[0]
        raise UserError(f"{path} is no readable parquet file: {message}; fetch or write it again.") from error


@functools.lru_cache(maxsize=8)
def hub_files(repo: str, revision: str, pattern: str) -> tuple[str, tuple[str, ...]]:
    """(commit, names of the data set's files that match), from the local copy where HF_HUB_OFFLINE is set."""
    import huggingface_hub
    from huggingface_hub import constants, errors

    try:
        if constants.HF_HUB_OFFLINE:
            place = huggingface_hub.snapshot_download(
                repo, repo_type="dataset", revision=revision, local_files_only=True
            )
            found = (Path(parent, name) for parent, _, names in os.walk(place) for name in names)
            commit, names = Path(place).name, [path.relative_to(place).as_posix() for path in found]
        else:
            info = huggingface_hub.HfApi().dataset_info(repo, revision=revision)
            commit, names = info.sha, [file.rfilename for file in info.siblings]
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError, ValueError) as error:
        message = str(error).strip().partition("\n")[0]
        raise UserError(f"data set {repo} ({revision}) cannot be listed: {message}; check name and network.") from error
    names = tuple(sorted(name for name in names if fnmatch.fnmatch(name, pattern)))
    if not names:
        raise UserError(f"data set {repo} at {revision} has no file {pattern}; give files= another pattern.")
    return commit, names


def hub_file(repo: str, revision: str, pattern: str, name: str) -> str:
    """Path of one of `hub_files` on this machine, fetched where it is not there."""
    import huggingface_hub
    from huggingface_hub import errors

    commit, _ = hub_files(repo, revision, pattern)
    try:
        return huggingface_hub.hf_hub_download(repo, name, repo_type="dataset", revision=commit)
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        message = str(error).strip().partition("\n")[0]
        raise UserError(f"{name} of data set {repo} cannot be fetched: {message}; run it again.") from error
