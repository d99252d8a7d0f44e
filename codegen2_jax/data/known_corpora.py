"""Documents of the corpora that need no description: the standard library, texts, and CodeTask-CL's training code."""

import ast
import functools
import json
import os
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

from codegen2_jax.data import codetask_cl, python_corpus, sources
from codegen2_jax.data.document_sources import FOLDERS_LEFT_OUT, Document, decoded, with_line_feeds
from codegen2_jax.data.python_functions import functions_of, parse
from codegen2_jax.data.sources import SourceFile
from codegen2_jax.errors import UserError

BOOLQ_VARIABLE = "BOOLQ_DIR"
MIN_DOCSTRING_CHARACTERS = 400
VARIABLES = {"text": (BOOLQ_VARIABLE,), "codetask": (codetask_cl.DIRECTORY_VARIABLE,)}
"""Environment variables that name the folders of a kind of corpus."""

LICENCES = {
    "python": sources.STANDARD_LIBRARY_LICENCE,
    "text": f"{sources.STANDARD_LIBRARY_LICENCE}; passages of BoolQ CC-BY-SA-3.0",
    "codetask": "C-UDA-1.0",
}
# language -> (file of the train split, JSON field or None for a line of text). Refinement's code has abstracted names.
CODETASK_FILES = {
    "java": (("concode/train.json", "code"), ("translate/train.java-cs.txt.java", None)),
    "c_sharp": (("translate/train.java-cs.txt.cs", None),),
    "ruby": (("summarize/ruby/train.jsonl", "code"),),
}
_CODETASK_SUFFIX = {"java": "java", "c_sharp": "cs", "ruby": "rb"}


@functools.lru_cache(maxsize=1)
def python_documents() -> tuple[Document, ...]:
    """The standard library without tests; with a fault what must not be seen before PyTask-CL is evaluated."""
    folder = Path(sysconfig.get_path("stdlib"))
    evaluated = [file for file in sources.standard_library() if sources.split_of(file.path) != "train"]
    held_out = {file.path for file in evaluated} | {file.digest for file in evaluated}
    functions = python_corpus.held_out_functions(evaluated)
    made = []
    for path in sources.standard_library_paths(optional=True):
        name, text = f"{sources.STANDARD_LIBRARY}/{path.relative_to(folder).as_posix()}", sources.read_python(path)
        fault = "not UTF-8 text" if text is None else "" if text.strip() else "empty"
        if not fault:
            fault = _held_out_fault(SourceFile(path=name, package="", licence="", text=text), held_out, functions)
        made.append(Document(id=name, text="" if fault else text, fault=fault))
    return tuple(made)


def _held_out_fault(file: SourceFile, held_out: set[str], functions: frozenset[str]) -> str:
    """As python_corpus.gather does: files behind the splits go, their copies, and files with one of their functions."""
    if file.path in held_out or file.digest in held_out:
        return python_corpus.HELD_OUT
    tree = parse(file.text)
    if tree is None:
        return "does not parse"
    for function in functions_of(file, tree):
        if function.num_statements >= python_corpus.MIN_STATEMENTS_COMPARED and function.fingerprint in functions:
            return f"contains a function of PyTask-CL's valid or test files: {function.name.partition('::')[2]}"
    return ""


@functools.lru_cache(maxsize=1)
def library_texts() -> tuple[Document, ...]:
    """Natural language that comes with every interpreter."""
    from pydoc_data import topics

    made = [Document(id=f"pydoc_data/{name}", text=text) for name, text in sorted(topics.topics.items())]
    for document in python_documents():
        if not document.fault:
            made += _docstrings(document)
    for path in library_readmes():
        text, fault = decoded(path.read_bytes())
        name = path.relative_to(sysconfig.get_path("stdlib")).as_posix()
        made.append(Document(id=f"{sources.STANDARD_LIBRARY}/{name}", text=text, fault=fault))
    return tuple(made)


def _docstrings(document: Document) -> Iterator[Document]:
    """The long docstrings of a Python file that are more words than signs."""
    for node in ast.walk(ast.parse(document.text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node) or ""
            letters = sum(character.isalpha() or character.isspace() for character in text)
            if len(text) >= MIN_DOCSTRING_CHARACTERS and letters >= 0.8 * len(text):
                place = f"{getattr(node, 'name', 'module')}@{getattr(node, 'lineno', 1)}"
                # In the split of its file: documents_python's valid files must not be seen in part.
                yield Document(id=f"{document.id}::{place}", text=text + "\n", split_by=document.id)


def library_readmes() -> list[Path]:
    """The README files of the standard library, in order."""
    found = []
    for parent, folders, names in os.walk(sysconfig.get_path("stdlib")):
        folders[:] = [name for name in folders if name not in {*FOLDERS_LEFT_OUT, "test", "tests"}]
        found += [Path(parent, name) for name in names if name.startswith("README") and not name.endswith(".py")]
    return sorted(found)


def boolq_files() -> list[Path]:
    """BoolQ's train file, and dev where it is there; none without BOOLQ_DIR."""
    folder = os.environ.get(BOOLQ_VARIABLE)
    if not folder:
        return []
    train, dev = sources.require_file(folder, "train.json", setting=BOOLQ_VARIABLE), Path(folder, "dev.json")
    return [train, dev] if dev.is_file() else [train]


def boolq_documents() -> Iterator[Document]:
    """The train passages; one that dev has too (an eighth of them) must not be seen before that is evaluated."""
    rows = {}
    for path in boolq_files():
        try:
            sentences = [row["sentence"] for row in json.loads(path.read_text(encoding="utf-8"))]
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path} is no list of objects with a sentence: {error}; take O-LoRA's files.") from error
        rows[path.name] = [sentence.partition("\npassage: ")[2] for sentence in sentences]
    dev = {sources.normalise_white_space(passage) for passage in rows.get("dev.json", ())}
    for number, passage in enumerate(rows.get("train.json", ()), start=1):
        fault = "a passage of BoolQ's dev set" if sources.normalise_white_space(passage) in dev else ""
        yield Document(id=f"boolq/train/{number}", text="" if fault else passage + "\n", fault=fault)


def codetask_documents(language: str, paths: Sequence[str]) -> Iterator[Document]:
    """A row is a document: one method. Ids end in the language's suffix, as a file's would."""
    for path, (name, field) in zip(paths, sorted(CODETASK_FILES[language]), strict=True):
        if field is None:
            rows, rejected = [*enumerate(sources.read_lines(Path(path)), start=1)], []
        else:
            found, rejected = sources.read_json_lines(Path(path), (field,))
            texts = ((number, row[field]) for number, row in found)
            rows = [(number, text if isinstance(text, str) else " ".join(text)) for number, text in texts]
        everything = [(number, text, "") for number, text in rows] + [(one.line, "", one.reason) for one in rejected]
        for number, text, fault in sorted(everything):
            name_of_row = f"{name.partition('/')[0]}/train/{number}.{_CODETASK_SUFFIX[language]}"
            yield Document(id=name_of_row, text=text.strip() and with_line_feeds(text.strip()) + "\n", fault=fault)
