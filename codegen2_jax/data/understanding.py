"""Benchmarks that are not run: questions with a few answers, summaries, programs to be told apart.

Loaders take the folder of the publishers' official files; splits are "train", "valid" and "test" everywhere, and what
a publisher calls otherwise, or withholds, is said here. Every reader raises UserError for what is missing or damaged.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from codegen2_jax.data.evaluation_sets import rows_of
from codegen2_jax.data.sources import read_lines, stable_hash
from codegen2_jax.errors import UserError

LICENCES = {"boolq": "CC-BY-SA-3.0", "defect": "C-UDA-1.0", "piqa": "AFL-3.0", "poj104_pairs": "C-UDA-1.0"}
BINARY = ((0, "0"), (1, "1"))
"""How files write the answers 0 and 1, as `BOOLQ_ANSWERS` how BoolQ's write False and True."""
POJ_SPLITS = {"train": (1, 64), "valid": (65, 80), "test": (81, 104), "all": (1, 104)}
"""Classes of each split, as CodeXGLUE parts the 104 problems; used where one file holds them all."""
BETWEEN = " </> "
BOOLQ_ANSWERS = ((False, "False"), (True, "True"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """A text, what stands between it and the answer, the answers to choose from, and the number of the right one.

    Too long a text loses its end, never the cue.
    """

    id: str
    text: str
    cue: str
    choices: tuple[str, ...]
    label: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Article:
    """A document and its summary."""

    id: str
    document: str
    summary: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labelled:
    """A program and the problem that it solves."""

    id: str
    code: str
    label: str


def boolq(directory: str | Path, split: str) -> tuple[Question, ...]:
    """BoolQ (Clark et al. 2019): google's train.jsonl and dev.jsonl, or both as .json with `sentence` and `label`.

    The test split's answers are not public: "test" is dev, and "valid" every tenth row of train, which "train" lacks.
    """
    name, kept = _held_out(split, "dev", "BOOLQ_DIR")
    found = []
    for number, row in _split_rows(directory, name, "BOOLQ_DIR"):
        if "sentence" in row:
            text, answer = _text(row, "sentence", name), _of(row, "label", name)
        else:
            text = f"question: {_text(row, 'question', name)}\npassage: {_text(row, 'passage', name)}"
            answer = _of(row, "answer", name)
        label = _label(answer, BOOLQ_ANSWERS, f"row {number} of {name}")
        question = Question(id=f"{name}/{number}", text=text, cue="\nanswer:", choices=(" False", " True"), label=label)
        found.append(question)
    return kept(found)


def defect(directory: str | Path, split: str) -> tuple[Question, ...]:
    """Devign as CodeXGLUE gives it (Zhou et al. 2019): train, valid and test.jsonl with `func`, `target`, `idx`."""
    return tuple(
        Question(
            id=f"{split}/{row.get('idx', number)}",
            text=_text(row, "func", split),
            cue="\n// Is this function vulnerable? Answer:",
            choices=(" no", " yes"),
            label=_label(_of(row, "target", split), BINARY, f"row {number} of {split}"),
        )
        for number, row in _split_rows(directory, _checked(split), "DEFECT_DIR")
    )


def piqa(directory: str | Path, split: str) -> tuple[Question, ...]:
    """PIQA (Bisk et al. 2020): {train,valid}.jsonl with {train,valid}-labels.lst.

    The test split's labels are not public: "test" is valid, and "valid" every tenth row of train.
    """
    name, kept = _held_out(split, "valid", "PIQA_DIR")
    rows = list(_split_rows(directory, name, "PIQA_DIR"))
    path = Path(directory, f"{name}-labels.lst")
    if not path.is_file():
        raise UserError(f"{path} is missing; PIQA_DIR must be the folder with the official files.")
    labels = [line for line in read_lines(path) if line]
    if len(labels) != len(rows):
        raise UserError(f"{path} has {len(labels)} labels for {len(rows)} rows; the files do not belong together.")
    return kept([
        Question(
            id=f"{name}/{number}",
            text=f"Question: {_text(row, 'goal', name)}",
            cue="\nAnswer:",
            choices=(f" {_text(row, 'sol1', name)}", f" {_text(row, 'sol2', name)}"),
            label=_label(label.strip(), BINARY, f"line {number} of {path.name}"),
        )
        for (number, row), label in zip(rows, labels, strict=True)
    ])  # fmt: skip


def lambada(directory: str | Path, split: str = "test") -> tuple[tuple[str, str, str], ...]:
    """LAMBADA (Paperno et al. 2016): (id, passage without its last word, " " + the last word).

    lambada_test_plain_text.txt and lambada_development_plain_text.txt of the publishers, or OpenAI's
    lambada_test.jsonl with `text`.
    """
    names = {"test": ("lambada_test_plain_text.txt", "lambada_test.jsonl"),
             "valid": ("lambada_development_plain_text.txt", "lambada_development.jsonl")}  # fmt: skip
    if split not in names:
        raise UserError(f"split={split!r} of LAMBADA is unknown; choose test or valid.")
    plain, lines = (Path(directory, name) for name in names[split])
    if plain.is_file():
        texts = [line for line in read_lines(plain) if line.strip()]
    elif lines.is_file():
        texts = [_text(row, "text", lines.name) for _, row in rows_of(lines)]
    else:
        raise UserError(f"neither {plain.name} nor {lines.name} is in {directory}; LAMBADA_DIR must hold one of them.")
    parted = [text.rstrip().rpartition(" ") for text in texts]
    return tuple((f"{split}/{number}", head, f" {word}") for number, (head, _, word) in enumerate(parted, start=1))


def xsum(directory: str | Path, split: str) -> tuple[Article, ...]:
    """XSum (Narayan et al. 2018): {train,validation,test} as .jsonl, .json or .parquet with document, summary, id."""
    name = "validation" if split == "valid" else _checked(split)
    return tuple(
        Article(
            id=str(row.get("id", number)),
            document=_text(row, "document", name),
            summary=_text(row, "summary", name),
        )
        for number, row in _split_rows(directory, name, "XSUM_DIR")
    )


def poj104(directory: str | Path, split: str) -> tuple[Labelled, ...]:
    """POJ-104 (Mou et al. 2016) as CodeXGLUE gives it: rows of `code`, `label`, `index` in {train,valid,test}.jsonl.

    A folder with one other .jsonl file is parted by class as CodeXGLUE does, 64 / 16 / 24; "all" is every class.
    """
    if split not in POJ_SPLITS:
        raise UserError(f"split={split!r} of POJ-104 is unknown; choose one of {', '.join(POJ_SPLITS)}.")
    if split != "all" and Path(directory, f"{split}.jsonl").is_file():
        paths = [Path(directory, f"{split}.jsonl")]
    elif Path(directory, "train.jsonl").is_file():
        paths = [Path(directory, f"{name}.jsonl") for name in ("train", "valid", "test")]
    else:
        paths = sorted(Path(directory).glob("*.jsonl"))
        if len(paths) != 1:
            raise UserError(f"{directory} holds {len(paths)} .jsonl files; POJ104_DIR must hold the official 3, or 1.")
    first, last = POJ_SPLITS[split]
    rows = [row for path in paths for _, row in rows_of(path)]
    name = "POJ-104"
    found = [
        Labelled(id=str(row.get("index", n)), code=_text(row, "code", name), label=str(_of(row, "label", name)))
        for n, row in enumerate(rows)
    ]
    wrong = next((one for one in found if not one.label.isdecimal()), None)
    if wrong is not None:
        raise UserError(f"program {wrong.id} of {name} has the label {wrong.label!r}, no number from 1 to 104.")
    return tuple(one for one in found if first <= int(one.label) <= last)


def poj104_pairs(directory: str | Path, split: str, most_characters: int = 1000) -> tuple[Question, ...]:
    """Pairs of programs, half of them solutions of one problem: every program with one of its own class and another.

    The partners come from a hash of the program's id, so they are the same on every machine. Of a longer program the
    first `most_characters` stand in the pair, so that it does not crowd out the other.
    """
    programs = poj104(directory, split)
    by_label: dict[str, list[Labelled]] = {}
    for one in programs:
        by_label.setdefault(one.label, []).append(one)
    found = []
    for one in programs:
        draw = stable_hash(f"poj104/{one.label}/{one.id}")
        own = [other for other in by_label[one.label] if other is not one]
        labels = [label for label in by_label if label != one.label]
        if not own or not labels:
            continue
        strangers = by_label[labels[draw % len(labels)]]
        # The hash decides which comes first: alternating labels would mislead whoever takes every second pair.
        for label, group in ((1, own), (0, strangers))[:: 1 if draw // 10**6 % 2 else -1]:
            other = group[draw // 1000 % len(group)]
            question = Question(
                id=f"{one.label}-{one.id}/{other.label}-{other.id}",
                text=f"{one.code[:most_characters]}{BETWEEN}{other.code[:most_characters]}",
                cue="\n// Do these programs solve the same problem? Answer:",
                choices=(" no", " yes"),
                label=label,
            )
            found.append(question)
    return tuple(found)


QUESTIONS: dict[str, Callable[[str | Path, str], tuple[Question, ...]]] = {
    "boolq": boolq,
    "defect": defect,
    "piqa": piqa,
    "poj104_pairs": poj104_pairs,
}


def directory_variable(name: str) -> str:
    """The environment variable, and macro, that names the folder of a benchmark of `QUESTIONS`."""
    return f"{name.removesuffix('_pairs').upper()}_DIR"


def questions(name: str, directory: str | Path | None, split: str) -> tuple[Question, ...]:
    """The split of a benchmark of `QUESTIONS`; UserError for an unknown one and where no directory is given."""
    if name not in QUESTIONS:
        raise UserError(f"benchmark {name!r} is unknown; choose one of {', '.join(QUESTIONS)}.")
    if not directory:
        setting = directory_variable(name)
        raise UserError(f"{name} needs its files; give --gin.{setting}=\"'FOLDER'\" or the variable {setting}.")
    found = QUESTIONS[name](directory, split)
    if not found:
        raise UserError(f"split {split!r} of {name} in {directory} is empty; take the official files.")
    return found


def _held_out(split: str, test: str, setting: str) -> tuple[str, Callable[[Sequence[Question]], tuple[Question, ...]]]:
    """The file of a split and what is kept of its rows, where the test file's answers are withheld."""
    if split == "test":
        return test, tuple
    is_valid = _checked(split) == "valid"
    return "train", lambda rows: tuple(one for n, one in enumerate(rows) if (n % 10 == 9) == is_valid)


def _checked(split: str) -> str:
    if split not in ("train", "valid", "test"):
        raise UserError(f"split={split!r} is unknown; choose train, valid or test.")
    return split


def _split_rows(directory: str | Path, name: str, setting: str) -> list[tuple[int, dict]]:
    """(number from 1, row) of {name}.jsonl, .jsonl.gz, .json or .parquet (in several parts too)."""
    for suffix in (".jsonl", ".jsonl.gz", ".json"):
        path = Path(directory, name + suffix)
        if path.is_file():
            return list(rows_of(path))
    parts = sorted([*Path(directory).glob(f"{name}.parquet"), *Path(directory).glob(f"{name}-*.parquet")])
    if not parts:
        raise UserError(f"{directory} holds no {name}.jsonl; {setting} must be the folder with the official files.")
    import pyarrow.parquet  # late, since few files are of this kind

    rows = []
    for part in parts:
        try:
            rows += pyarrow.parquet.read_table(part).to_pylist()
        except (OSError, pyarrow.ArrowException) as error:
            raise UserError(f"{part} is damaged ({error}); fetch the file again.") from None
    return list(enumerate(rows, start=1))


def _label(value: object, answers: Sequence[tuple], place: str) -> int:
    """The number of an answer, written as one of `answers`; 1 is not True, and another one is never guessed at."""
    for label, forms in enumerate(answers):
        if any(type(value) is type(form) and value == form for form in forms):
            return label
    known = ", ".join(repr(form) for forms in answers for form in forms)
    raise UserError(f"{place} has the answer {str(value)[:60]!r} ({type(value).__name__}); it must be one of {known}.")


def _text(row: dict, field: str, place: str) -> str:
    value = _of(row, field, place)
    if not isinstance(value, str):
        raise UserError(f"a row of {place} has {str(value)[:60]!r} as its {field}; it must be text.")
    return value


def _of(row: dict, field: str, place: str):
    if field not in row:
        raise UserError(f"a row of {place} has no field {field}; its fields are {', '.join(row)}.")
    return row[field]
