"""CodeTask-CL: official files and fields, counted rejections, and the real data where it is."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from codegen2_jax.data import codetask_cl
from codegen2_jax.data.sources import SPLITS
from codegen2_jax.data.vocabulary import Vocabulary, train_vocabulary
from codegen2_jax.errors import UserError

SHARED = Path(__file__).parents[3] / "shared" / "data" / "codetask_cl"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the CodeTask-CL files are not beside this checkout")


def write_fake(root):
    """Two to four rows of everything, under the official names."""
    concode = [{"nl": " get name concode_field_sep int id ", "code": "String function ( ) { return name ; } "}] * 2
    summarize = [{"code_tokens": ["def", "name", "\n", "@name ", "end"], "docstring_tokens": ["The", "na\nme", " ."],
                  "repo": "r"}]  # fmt: skip
    for split in SPLITS:
        files = {
            f"concode/{'dev' if split == 'valid' else split}.json": "\n".join(map(json.dumps, concode)),
            f"translate/{split}.java-cs.txt.java": " int f ( ) { } \nvoid g\x0b( )\n",
            f"translate/{split}.java-cs.txt.cs": "int F ( ) { }\nvoid G ( )\n",
            f"summarize/ruby/{split}.jsonl": "\n".join(map(json.dumps, summarize * 3)) + "\n",
            f"refine/small/{split}.buggy-fixed.buggy": "a VAR_1\nb VAR_2\nc\nd",
            f"refine/small/{split}.buggy-fixed.fixed": "a VAR_2\nb VAR_1\nc\nd",
        }
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(text.encode())


@pytest.fixture
def fake(tmp_path):
    write_fake(tmp_path)
    return tmp_path


EXPECTED = {
    "codetask_concode": ("concode", 2, "get name concode_field_sep int id", "String function ( ) { return name ; }"),
    "codetask_translate": ("translate", 2, "int f ( ) { }", "int F ( ) { }"),
    "codetask_summarize": ("summarize", 3, "def name @name end", "The name ."),
    "codetask_refine": ("refine", 4, "a VAR_1", "a VAR_2"),
}


@pytest.mark.parametrize("task", codetask_cl.TASKS)
@pytest.mark.parametrize("split", SPLITS)
def test_texts_are_prepared_as_codet5_does(fake, task, split):
    name, rows, source, target = EXPECTED[task]
    read = codetask_cl.read_split(task, split, fake)
    assert [example.id for example in read.examples] == [f"{name}/{split}/{line}" for line in range(1, rows + 1)]
    assert (read.examples[0].inputs, read.examples[0].targets) == (source, target)
    assert read.rows == rows and read.rejected == () and read.has_targets
    assert all(hashlib.sha256(Path(path).read_bytes()).hexdigest() == digest for path, digest in read.digests.items())
    assert len(read.digests) == len(codetask_cl.LAYOUTS[task].files)


def test_malformed_and_empty_rows_are_rejected_with_file_and_line(fake):
    file = fake / "concode" / "train.json"
    rows = ['{"nl": "a", "code": "b"}', "{", '{"nl": "a"}', '{"nl": " ", "code": "b"}', '{"nl": "a", "code": " "}']
    file.write_text("\n".join(rows))
    read = codetask_cl.read_split("codetask_concode", "train", fake)
    assert [example.id for example in read.examples] == ["concode/train/1"] and read.rows == 5
    assert [(one.file, one.line) for one in read.rejected] == [(str(file), line) for line in (2, 3, 4, 5)]
    assert [one.reason.partition(":")[0] for one in read.rejected] == [
        "malformed JSON", "no field code", "empty source", "empty target",
    ]  # fmt: skip


def test_withheld_targets_are_no_fault_of_the_rows(fake):
    (fake / "concode" / "test.json").write_text('{"nl": "a", "code": ""}\n{"nl": "b", "code": ""}\n')
    read = codetask_cl.read_split("codetask_concode", "test", fake)
    assert not read.has_targets and len(read.examples) == 2 and read.rejected == ()
    assert {example.targets for example in read.examples} == {""}


def test_parallel_files_must_have_equally_many_lines(fake):
    with (fake / "translate" / "valid.java-cs.txt.cs").open("a") as file:
        file.write("one more\n")
    with pytest.raises(UserError, match=r"valid\.java-cs\.txt\.java has 2 lines but .*\.cs has 3"):
        codetask_cl.read_split("codetask_translate", "valid", fake)


def test_a_changed_file_is_read_again(fake):
    assert len(codetask_cl.read_split("codetask_refine", "test", fake).examples) == 4
    for side in ("buggy", "fixed"):
        (fake / "refine/small" / f"test.buggy-fixed.{side}").write_text(f"one {side}\n")
    assert len(codetask_cl.read_split("codetask_refine", "test", fake).examples) == 1


def test_a_missing_directory_or_file_names_variable_and_file(fake, monkeypatch):
    monkeypatch.delenv("CODETASK_CL_DIR", raising=False)
    with pytest.raises(UserError, match=r"CODETASK_CL_DIR is not set.*concode/dev\.json"):
        codetask_cl.read_split("codetask_concode", "valid")
    monkeypatch.setenv("CODETASK_CL_DIR", str(fake))
    (fake / "summarize/ruby/test.jsonl").unlink()
    with pytest.raises(UserError, match=r"summarize/ruby/test\.jsonl is missing; CODETASK_CL_DIR="):
        codetask_cl.read_split("codetask_summarize", "test")


def test_importing_registers_without_any_directory(program_environment):
    code = (
        "import os, seqio, tasks.codetask_cl as module\n"
        "names = module.STREAMS['codetask_cl']\n"
        "assert names == ('codetask_concode', 'codetask_translate', 'codetask_summarize', 'codetask_refine')\n"
        "assert set(names) <= set(seqio.TaskRegistry.names()) and 'codetask_cl' in seqio.MixtureRegistry.names()\n"
        "try: seqio.TaskRegistry.get(names[0]).num_input_examples('train')\n"
        "except ValueError as error: print(error)\n"
        # All that is built in is known to JSONL_TASKS, whose names may be none of it, nor another module's.
        "import tasks.documents, tasks.evaluation, tasks.pretraining, tasks.pytask_cl, tasks.tiny_ci\n"
        "from codegen2_jax.data import jsonl\n"
        "registered = {*seqio.TaskRegistry.names(), 'jsonl', 'documents', 'pretraining'}\n"
        "assert jsonl.BUILT_IN == registered | set(seqio.MixtureRegistry.names()), jsonl.BUILT_IN ^ registered\n"
        "seqio.MixtureRegistry.add('taken', ['tiny_copy'], default_rate=1)\n"
        "task = jsonl.JsonlTask(name='taken', train='a', source='b', target='c')\n"
        "os.environ |= jsonl.environment([task])\n"
        "try: import tasks.jsonl\n"
        "except ValueError as error: print(error)\n"
    )
    environment = {name: value for name, value in program_environment.items() if name != "CODETASK_CL_DIR"}
    program = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert program.returncode == 0, program.stderr
    assert "CODETASK_CL_DIR is not set" in program.stdout
    assert "task name 'taken' of JSONL_TASKS is taken by another task or stream" in program.stdout


@pytest.fixture
def vocabulary(fake, tmp_path_factory, monkeypatch):
    directory = tmp_path_factory.mktemp("vocabulary")
    train_vocabulary([one.inputs for one in codetask_cl.read_split("codetask_concode", "train", fake).examples], 280, 4,
                     directory)  # fmt: skip
    monkeypatch.setenv("CODEGEN2_JAX_VOCABULARY", str(directory))
    monkeypatch.setenv("CODETASK_CL_DIR", str(fake))
    return Vocabulary.from_directory(directory)


@pytest.mark.parametrize("task", codetask_cl.TASKS)
def test_seqio_gives_the_expected_rows(task, vocabulary, fake):
    import seqio

    from tasks import codetask_cl as registered

    _, rows, source, target = EXPECTED[task]
    dataset = seqio.get_mixture_or_task(task).get_dataset(None, split="valid", shuffle=False)
    seqio.test_utils.assert_dataset(
        dataset.take(1),
        {
            "id": f"{EXPECTED[task][0]}/valid/1",
            "inputs_text": source,
            "targets_text": target,
            "inputs": [1, *vocabulary.encode(source), 2],
            "targets": [1, *vocabulary.encode(target), 2],
        },
        expected_dtypes={},
    )
    assert len(list(dataset)) == rows == seqio.TaskRegistry.get(task).num_input_examples("valid")
    facts = registered.provenance(task, "valid")
    assert facts["counts"] == {"rows": rows, "examples": rows, "rejected": 0}
    assert facts["environment"] == ["CODETASK_CL_DIR"] and facts["licence"] == "C-UDA-1.0"
    assert set(facts["sources"]) == {str(fake / name) for name in codetask_cl.LAYOUTS[task].names("valid")}


def test_long_rows_are_cut_from_the_right_and_keep_their_end(vocabulary, fake):
    import seqio

    from tasks import codetask_cl as registered

    long_text = " ".join(f"word{number}" for number in range(400))
    for side in ("buggy", "fixed"):
        (fake / "refine/small" / f"train.buggy-fixed.{side}").write_text(f"{long_text}\n")
    (found,) = seqio.TaskRegistry.get("codetask_refine").get_dataset(None, "train", shuffle=False).as_numpy_iterator()
    for side, length in zip(("inputs", "targets"), registered.MAX_LENGTHS["codetask_refine"], strict=True):
        tokens = found[side].tolist()
        assert tokens == [1, *vocabulary.encode(long_text)[: length - 2], 2] and tokens.count(2) == 1


REAL_ROWS = {  # shared/data/README.md
    "codetask_concode": (1600, 200, 200),
    "codetask_translate": (9795, 499, 500),
    "codetask_summarize": (4308, 700, 700),
    "codetask_refine": (4835, 500, 500),
}


@needs_data
@pytest.mark.parametrize("task", codetask_cl.TASKS)
def test_the_real_files(task):
    for split, rows in zip(SPLITS, REAL_ROWS[task], strict=True):
        read = codetask_cl.read_split(task, split, SHARED)
        assert (read.rows, len(read.examples), len(read.rejected)) == (rows, rows, 0)
        assert read.has_targets
        assert os.path.commonpath(read.digests).startswith(str(SHARED))


@needs_data
def test_copying_the_source_scores_what_is_known():
    """Texts are prepared right: copy floors of these files, specs on CodeTask-CL section 1.8."""
    from codegen2_jax.metrics.bleu import codet5_bleu, codet5_smooth_bleu

    known = {
        "codetask_translate": (codet5_bleu, 21.83),
        "codetask_refine": (codet5_bleu, 77.74),
        "codetask_concode": (codet5_bleu, 0.0857),
        "codetask_summarize": (codet5_smooth_bleu, 2.1245),
    }
    for task, (score, value) in known.items():
        examples = codetask_cl.read_split(task, "test", SHARED).examples
        found = score([one.inputs for one in examples], [one.targets for one in examples])
        assert found == pytest.approx(value, abs=0.006), task
