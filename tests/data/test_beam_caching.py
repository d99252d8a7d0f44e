"""A cache made in stages, alone or on Apache Beam, is the cache that one process writes: every byte of every file."""

import functools
import gc
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from codegen2_jax import cache_tasks
from codegen2_jax.data import beam_caching, cache, cache_stages, cache_writing
from codegen2_jax.data.vocabulary import train_vocabulary
from codegen2_jax.errors import UserError

# Four shards of rows "id, input, target", with all that can be wrong in them: repeated ids within and across shards,
# empty inputs, and targets that are empty before the first that is not. The test split has no target at all; the
# second task's source says nothing of its shards, the third's examples differ in what is around them.
TASK_MODULE = """
import os
import seqio
import tensorflow as tf
from codegen2_jax.data.vocabulary import Vocabulary, as_seqio
from codegen2_jax.errors import UserError

VOCABULARY = as_seqio(Vocabulary.from_directory(os.environ["CODEGEN2_JAX_VOCABULARY"]))

def rows(split, shard):
    if shard == 2 and os.environ.get("CODEGEN2_JAX_TOY_FAULT"):
        raise UserError("shard 2 of the toy cannot be read.")
    for number in range(15 + 4 * shard):
        name = f"{shard}/{number}" if number % 9 else f"again/{number % 2}"
        empty = split == "test" or number % 7 == 3 or shard == 0 and number < 5
        yield name, "" if number % 11 == 5 else f"def f{number}(x): " + "y " * number, "" if empty else f"out {number}"

class Source(seqio.DataSource):
    def __init__(self):
        super().__init__(splits=["train", "test"])
    supports_arbitrary_sharding = False
    def list_shards(self, split):
        return [f"{split}-{number}" for number in range(4)]
    def num_input_examples(self, split):
        return None
    def get_dataset(self, split="train", shuffle=False, seed=None, shard_info=None, **unused):
        shards = [shard_info.index] if shard_info and shard_info.num_shards > 1 else range(4)
        found = [row for shard in shards for row in rows(split, shard)]
        names = ("id", "inputs", "targets")
        return tf.data.Dataset.from_tensor_slices({name: [row[i] for row in found] for i, name in enumerate(names)})

class Identified(Source):
    def shard_identity(self, split, number):
        return f"toy {split} {number}"

def tokenise(dataset, wrap=True):
    def one(example):
        made = {"id": example["id"], "aside": tf.constant(0.5)}
        for side in ("inputs", "targets"):
            tokens = VOCABULARY.encode_tf(example[side])[:14]
            begun = tf.strings.regex_full_match(example["id"], "0/.*")
            whole = tf.concat([[VOCABULARY.bos_id], tokens, [VOCABULARY.eos_id]], 0)
            made[side] = whole if wrap else tf.cond(begun, lambda: whole, lambda: tokens)
            made[side + "_pretokenized"] = example[side]
        return made
    return dataset.map(one)

for name, source, wrap in (("one", Identified, True), ("two", Source, True), ("mixed", Identified, False)):
    seqio.TaskRegistry.add(
        name,
        source=source(),
        preprocessors=[lambda dataset, wrap=wrap: tokenise(dataset, wrap)],
        output_features={side: seqio.Feature(VOCABULARY, add_eos=False) for side in ("inputs", "targets")},
        metric_fns=[],
    )
STREAMS = {"toy": ("one", "two", "mixed")}
"""

# argv: folder, "here" or the options of Beam. Prints {task: info} as JSON, after caching all with few records a shard.
PROGRAM = """
import functools, json, os, sys
from collections import defaultdict
from pathlib import Path
from codegen2_jax.data import beam_caching, cache, cache_stages, cache_writing
from codegen2_jax.errors import UserError

folder, how = sys.argv[1:]
cache.write_split.__kwdefaults__["records_per_shard"] = 7
cache_stages.write_split.__kwdefaults__["records_per_shard"] = 7
cache_writing.MAX_REJECTED_LISTED = cache_stages.MAX_REJECTED_LISTED = 12
keywords = {"vocabulary_dir": os.environ["VOCABULARY"], "task_modules": ["staged_tasks"]}

def alone(flags, task_modules):
    def repetitions(stage, items):
        positions = defaultdict(list)
        for item in items:
            for name, position in stage(*item):
                positions[name].append(position)
        return [position for found in reversed(positions.values()) for position in sorted(found)[1:]]
    run = lambda stage, items: json.loads(json.dumps([stage(*item) for item in items]))
    return functools.partial(cache_stages.write_split, task_modules=task_modules, run=run, repetitions=repetitions)

errors = []
def cached(where, names, beam):
    lines = []
    try:
        writer = split_writer(beam, ("staged_tasks",))
        cache_writing.build(names, cache_dir=Path(folder, where), progress=lines.append, write_split=writer, **keywords)
    except UserError as error:
        errors.append(str(error))
    return lines

split_writer = beam_caching.split_writer
cached("local", ["one", "two"], None)
if how == "here":
    split_writer = alone
os.environ["CODEGEN2_JAX_TOY_FAULT"] = "1"
cached("staged", ["one"], how)
del os.environ["CODEGEN2_JAX_TOY_FAULT"]
kept = sorted(path.name for path in Path(folder, "staged", ".one.work").glob("*.array_record"))
cached("staged", ["one", "two"], how)
cached("other", ["mixed"], how)
print(json.dumps({"errors": errors, "kept": kept}))
sys.stdout.flush()
os._exit(0)
"""


def outcome(folder, how, program_environment):
    (folder / "staged_tasks.py").write_text(TASK_MODULE, encoding="utf-8")
    corpus = Path(json.__file__).read_text(encoding="utf-8")
    train_vocabulary([corpus], 400, 10, folder / "vocabulary")
    environment = program_environment | {"VOCABULARY": str(folder / "vocabulary"), "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment["PYTHONPATH"] += f":{folder}"
    command = [sys.executable, "-c", PROGRAM, str(folder), how]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def files(directory):
    found = [path for path in directory.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in found}


def check(folder, found):
    local, staged = files(folder / "local"), files(folder / "staged")
    assert list(local) and sorted(local) == sorted(staged)
    differing = [name for name in local if local[name] != staged[name]]
    assert not differing, differing
    info = json.loads(local["one/info.json"])
    train, test = info["splits"]["train"], info["splits"]["test"]
    assert len(train["shards"]) > 5 and info["has_targets"] == {"train": True, "test": False}
    assert train["examples"] + train["rejected_count"] == test["examples"] + test["rejected_count"] == 84
    reasons = {row["reason"] for row in train["rejected"]}
    assert reasons == {"the id occurs twice", "the input is empty", cache_writing.NO_TARGET}
    assert len(train["rejected"]) == 12 < train["rejected_count"]
    assert train["truncated"]["inputs"] > 0 and test["tokens_cut"]["inputs"] > 0
    # A mistake arrives as one line; the shards made before it are not made again.
    assert found["errors"][0] == "shard 2 of the toy cannot be read."
    assert found["kept"] and not list((folder / "staged").glob(".*.work"))
    assert "are wrapped as <s> ... </s>" in found["errors"][1] and len(found["errors"]) == 2


@pytest.mark.slow
def test_stages_write_the_same_files_as_one_process(tmp_path, program_environment):
    if importlib.util.find_spec("seqio") is None:
        pytest.skip("SeqIO is not installed: pip install 'codegen2_jax[seqio]'")
    check(tmp_path, outcome(tmp_path, "here", program_environment))


def test_shards_that_are_wrapped_in_different_ways_are_an_error():
    class Split:
        def reading(self):
            return cache_writing.Reading("toy/train", None, print)

    with pytest.raises(UserError, match="some sequences of toy/train are wrapped"):
        cache_stages._sum_up(Split(), [{"wrapped": True}, {"wrapped": None}, {"wrapped": False}])


def test_a_part_appears_when_it_is_complete(tmp_path, monkeypatch):
    """A runner may write a part again, even while a first attempt still does; both make the same bytes."""
    (tmp_path / "work").mkdir()
    split = SimpleNamespace(environment={cache_writing.WORK_VARIABLE: str(tmp_path / "work")}, reading=lambda: None)
    part = tmp_path / "train.part0"

    def judged(*arguments, fail=False):
        for position in range(5):
            assert not part.exists() or fail
            tokens = np.arange(position + 1, dtype=np.int32)
            yield position, {"id": f"{position}", "inputs": tokens, "targets": tokens}, "", 0
        if fail:
            raise OSError("the machine goes")

    monkeypatch.setattr(cache_stages, "_judged", judged)
    digest = cache_stages.write(split, str(part), [(0, 0, [])], "", 1, 3)
    assert cache.file_sha256(part) == digest and np.load(f"{part}.npy").tolist() == [[2, 2], [3, 3], [4, 4]]
    monkeypatch.setattr(cache_stages, "_judged", functools.partial(judged, fail=True))
    with pytest.raises(OSError, match="the machine goes"):
        cache_stages.write(split, str(part), [(0, 0, [])], "", 1, 30)
    assert cache.file_sha256(part) == digest and len(list(tmp_path.glob("train*"))) == 2


def test_a_worker_that_lacks_something_says_so_though_its_shard_is_there(tmp_path):
    (tmp_path / "shard").touch()

    class Split:
        files = (str(tmp_path / "shard"),)

        def ready(self):
            raise UserError("task module toy cannot be found.")

    assert beam_caching._call((3, (Split(), 0)), cache_stages.make) == (
        3,
        {"user_error": "task module toy cannot be found."},
    )


needs_beam = pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is None,
    reason="Apache Beam is not installed: in an environment of its own, pip install 'codegen2_jax[beam]' pytest-xdist",
)


@needs_beam
@pytest.mark.slow
@pytest.mark.parametrize("options", ["", "--runner=FnApiRunner --direct_num_workers=2"], ids=["default", "workers"])
def test_beam_writes_the_same_files_as_one_process(tmp_path, program_environment, options):
    check(tmp_path, outcome(tmp_path, options, program_environment))


@needs_beam
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("--runner=NoSuchRunner", "NoSuchRunner"),
        ("--no_such=1", "no option no_such; did you mean"),
        ("--direct_num_worker=2", "no option direct_num_worker; did you mean --direct_num_workers"),
        ("8", "no option 8;"),
        ("--direct_num_workers 2 more", "no option more;"),
        ("--direct_num_workers=2 more", "no option more;"),
        ("--streaming more", "no option more;"),
        ("--direct_num_workers=two", "invalid .* value: 'two'"),
        ("--direct_running_mode=multi_process", "invalid choice: 'multi_process'"),
        ("'", "No closing quotation"),
    ],
)
def test_an_option_that_beam_does_not_know_is_one_line(options, named, capfd):
    with pytest.raises(UserError, match=named):
        beam_caching.split_writer(options, ())
    assert "usage:" not in "".join(capfd.readouterr())


@needs_beam
def test_options_that_beam_knows_are_taken():
    for options in ("", "--direct_num_workers 2 --direct_running_mode=multi_processing", "--streaming --job_name=a"):
        assert beam_caching.split_writer(options, ())


def _half(number):
    if number == 3:
        raise OSError("a disk fails")
    return number / 2


@needs_beam
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # files that Beam leaves open when a stage fails
def test_a_runner_that_cannot_be_had_is_one_line_and_a_fault_of_a_stage_is_not(tmp_path):
    away = beam_caching._options(f"--runner=FlinkRunner --flink_job_server_jar={tmp_path}/none.jar")
    with pytest.raises(UserError, match="FlinkRunner could not run the pipeline"):
        beam_caching._run(away, tmp_path, _half, [(1,), (2,)])
    here = beam_caching._options("")
    assert beam_caching._run(here, tmp_path, _half, [(1,), (2,)]) == [0.5, 1.0]
    with pytest.raises((OSError, RuntimeError), match="a disk fails"):
        beam_caching._run(here, tmp_path, _half, [(1,), (3,)])
    assert not list(tmp_path.iterdir())
    gc.collect()


def test_without_beam_the_message_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    assert cache_tasks.main(["--tasks=x", f"--cache_dir={tmp_path / 'cache'}", "--beam"]) == 2
    assert "pip install 'codegen2_jax[beam]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
