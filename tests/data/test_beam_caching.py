"""A cache made in stages, alone or on Apache Beam, is the cache that one process writes: every byte of every file."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from codegen2_jax.data import beam_caching, cache_stages, cache_writing
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
        cache_writing.build(names, cache_dir=Path(folder, where), progress=lines.append, beam=beam, **keywords)
    except UserError as error:
        errors.append(str(error))
    return lines

cached("local", ["one", "two"], None)
if how == "here":
    beam_caching.split_writer = alone
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
    ("options", "named"), [("--runner=NoSuchRunner", "NoSuchRunner"), ("--no_such=1", "no_such"), ("8", "8")]
)
def test_an_option_that_beam_does_not_know_is_one_line(options, named):
    with pytest.raises(UserError, match=named):
        beam_caching.split_writer(options, ())


def test_without_beam_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"pip install 'codegen2_jax\[beam\]'"):
        cache_writing.build(["x"], cache_dir=tmp_path, vocabulary_dir=tmp_path, task_modules=["m"], beam="")
