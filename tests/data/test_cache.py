import importlib.util
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from codegen2_jax.data import cache, cache_writing
from codegen2_jax.data.loader import TrainingBatches, evaluation_batches
from codegen2_jax.data.vocabulary import Vocabulary, train_vocabulary
from codegen2_jax.errors import UserError

# A task module like any user's: two tasks over one file of rows "split <tab> id <tab> input <tab> target".
TASK_MODULE = """
import hashlib, os
import seqio
import tensorflow as tf
from codegen2_jax.data.vocabulary import Vocabulary, as_seqio

VOCABULARY = as_seqio(Vocabulary.from_directory(os.environ["CODEGEN2_JAX_VOCABULARY"]))
SOURCE = os.path.join(os.environ["TOY_DIR"], "rows.txt")
LIMITS = {"inputs": 16, "targets": 12}

def rows(split, shuffle_files=False, seed=None):
    lines = [line.split("\\t") for line in open(SOURCE, encoding="utf-8").read().splitlines()]
    lines = [line for line in lines if line[0] == split]
    names = ("id", "inputs", "targets")
    return tf.data.Dataset.from_tensor_slices({name: [line[i + 1] for line in lines] for i, name in enumerate(names)})

def tokenise(dataset):
    def one(example):
        made = {"id": example["id"]}
        for side, limit in LIMITS.items():
            tokens = VOCABULARY.encode_tf(example[side])[: limit - 2]
            made[side] = tf.concat([[VOCABULARY.bos_id], tokens, [VOCABULARY.eos_id]], 0)
            made[side + "_pretokenized"] = example[side]
        return made
    return dataset.map(one)

def exact_match(targets, predictions):
    return {"exact_match": 0.0}

for name in ("toy_a", "toy_b"):
    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(rows, splits=["train", "test"]),
        preprocessors=[tokenise],
        output_features={side: seqio.Feature(VOCABULARY, add_eos=False) for side in LIMITS},
        metric_fns=[exact_match],
    )
STREAMS = {"toy": ("toy_b", "toy_a")}
seqio.MixtureRegistry.add("toy", [("toy_b", 1), ("toy_a", 1)])

def provenance(task, split):
    digest = hashlib.sha256(open(SOURCE, "rb").read()).hexdigest()
    return {"sources": {SOURCE: digest}, "licence": "MIT", "settings": {"limit": 16}, "counts": {"rows": 9},
            "max_lengths": [16, 12], "environment": ["TOY_DIR"]}
"""

# What SeqIO itself gives for the same task, printed as JSON.
SEQIO_PROGRAM = """
import json, os, sys
import importlib
module = importlib.import_module("toy_tasks")
import seqio
dataset = seqio.get_mixture_or_task(sys.argv[1]).get_dataset(sequence_length=None, split="train", shuffle=False)
rows = [{side: row[side].tolist() for side in ("inputs", "targets")} for row in dataset.as_numpy_iterator()]
texts = ["def f(x):", "", "a</s>b", "  \\u00e9\\n"]
import tensorflow as tf
vocabulary = module.VOCABULARY
encoded = [vocabulary.encode_tf(tf.constant(text)).numpy().tolist() for text in texts]
batch = vocabulary.encode_tf(tf.constant(texts)).to_list()
decoded = [vocabulary.decode_tf(tf.constant(ids, tf.int32)).numpy().decode("utf-8") for ids in encoded]
from codegen2_jax.data import cache_writing
from codegen2_jax.errors import UserError
try:
    directory = os.environ["CODEGEN2_JAX_VOCABULARY"]
    cache_writing.build(["toy_c"], cache_dir=sys.argv[2], vocabulary_dir=directory, task_modules=["toy_tasks"])
except UserError as unknown:
    error = str(unknown)
found = {"rows": rows, "encoded": encoded, "batch": batch, "decoded": decoded}
print(json.dumps(found | {"size": vocabulary.vocab_size, "error": error}))
sys.stdout.flush()
os._exit(0)
"""

CORPUS = Path(json.__file__).read_text(encoding="utf-8")
# Example number -> what is wrong with it.
BAD_ROWS = {2: "the id occurs twice", 3: "the input is empty", 4: "the target is empty"}


def make_records(count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {
            "id": f"t/{number}",
            "inputs": rng.integers(0, 2**31 - 1, rng.integers(2, 30)).astype(np.int32),
            "targets": rng.integers(0, 50, rng.integers(2, 9)).astype(np.int32),
            "inputs_text": f"caf\u00e9 {number}",
            "targets_text": "",
        }
        for number in range(count)
    ]


def write_task(cache_dir, records, split="train", **keywords):
    entry = cache.write_split(Path(cache_dir, "t"), split, records, **keywords)
    info = {"task": "t", "splits": {split: entry}, "has_targets": {split: True}}
    Path(cache_dir, "t", "info.json").write_text(json.dumps(info), encoding="utf-8")
    return info


def assert_same_records(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            if isinstance(a[name], np.ndarray):
                assert b[name].dtype == np.int32
                np.testing.assert_array_equal(a[name], b[name])
            else:
                assert a[name] == b[name]


@pytest.mark.parametrize("in_memory", [True, False])
def test_what_is_written_is_read(tmp_path, monkeypatch, in_memory):
    monkeypatch.setattr(cache, "IN_MEMORY_BYTES", 2**20 if in_memory else -1)
    records = make_records(25)
    write_task(tmp_path, records, records_per_shard=10)
    names = sorted(path.name for path in Path(tmp_path, "t").glob("*.array_record"))
    assert names == [f"train-0000{i}-of-00003.array_record" for i in range(3)]
    split = cache.open_split(tmp_path, "t", "train")
    assert_same_records(records, list(split))
    order = [24, 0, 9, 10, 9, 19]
    assert_same_records([records[i] for i in order], split.__getitems__(order))
    assert split[-1]["id"] == "t/24"
    with pytest.raises(IndexError):
        split[25]
    assert split.source_lengths_N.tolist() == [len(record["inputs"]) for record in records]
    assert split.target_lengths_N.tolist() == [len(record["targets"]) for record in records]
    assert split.source_lengths_N.dtype == np.int32 and split.has_targets


def test_windows_without_inputs(tmp_path):
    records = [{"id": "w", "targets": np.arange(7, dtype=np.int32)}]
    write_task(tmp_path, records)
    split = cache.open_split(tmp_path, "t", "train")
    assert_same_records(records, list(split))
    assert (split.source_lengths_N.tolist(), split.target_lengths_N.tolist()) == ([0], [7])


def test_the_loader_gives_the_same_batches_from_cache_and_memory(tmp_path):
    records = make_records(40)
    write_task(tmp_path, records)
    split = cache.open_split(tmp_path, "t", "train")
    one, other = (TrainingBatches([source], [0], 4, seed=0) for source in (split, records))
    for number in range(12):
        for key, value in one.batch(number).items():
            np.testing.assert_array_equal(value, other.batch(number)[key])


def test_digest_stands_for_the_content(tmp_path):
    digests = []
    for name, records in (("a", make_records(9)), ("b", make_records(9)), ("c", make_records(8))):
        write_task(tmp_path / name, records)
        digests.append(cache.open_split(tmp_path / name, "t", "train").digest)
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("file", ["train-00000-of-00001.array_record", "train-lengths.npy"])
def test_a_damaged_or_missing_file_is_an_error(tmp_path, file):
    write_task(tmp_path, make_records(9))
    path = Path(tmp_path, "t", file)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"{file} does not have the sha256"):
        cache.open_split(tmp_path, "t", "train")
    path.unlink()
    with pytest.raises(UserError, match=f"{file} is missing"):
        cache.open_split(tmp_path, "t", "train")


def test_errors_of_reading(tmp_path):
    write_task(tmp_path, make_records(3))
    with pytest.raises(UserError, match=r"does not exist; cached tasks there: \['t'\]"):
        cache.open_split(tmp_path, "other", "train")
    with pytest.raises(UserError, match=r"no split 'valid'; it has \['train'\]"):
        cache.open_split(tmp_path, "t", "valid")
    with pytest.raises(cache.EmptySplitError, match="'empty' has no usable record"):
        cache.write_split(tmp_path, "empty", [])
    Path(tmp_path, "t", "info.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="is damaged"):
        cache.read_info(tmp_path, "t")


def test_staleness_has_a_reason_for_each_change(tmp_path):
    source = tmp_path / "source.txt"
    source.write_text("one", encoding="utf-8")
    info = {
        "format": cache.FORMAT,
        "vocabulary": "v",
        "environment": {"DIR": "/x"},
        "sources": {str(source): cache.file_sha256(source), str(tmp_path / "elsewhere"): "0"},
        "source_stats": {str(source): cache.file_stamp(source)},
    }

    def reason(environment=(("DIR", "/x"),), vocabulary="v", **changes):
        return cache.staleness(info | changes, vocabulary_digest=vocabulary, environment=dict(environment))

    assert reason() == "" and reason(environment=()) == ""
    assert "another vocabulary" in reason(vocabulary="w")
    assert "DIR was '/x' and is '/y'" in reason(environment=(("DIR", "/y"),))
    assert "format" in reason(format=0)
    source.write_text("two", encoding="utf-8")
    assert f"source {source} has changed" in reason()
    source.write_text("one", encoding="utf-8")  # rewritten, with the same content and another time
    assert reason() == ""


def test_a_task_defined_in_the_environment_is_never_another_of_its_name(tmp_path, vocabulary_dir):
    digest, variable = Vocabulary.from_directory(vocabulary_dir).digest, "CODEGEN2_JAX_JSONL_mine"
    info = {"format": cache.FORMAT, "task": "mine", "vocabulary": digest, "environment": {}, "sources": {}}

    def missing(recorded=None, **environment):
        recorded = {} if recorded is None else {variable: recorded}
        (tmp_path / "mine" / "info.json").write_text(json.dumps(info | {"environment": recorded}))
        return cache.missing(["mine"], cache_dir=tmp_path, vocabulary_dir=vocabulary_dir, environment=environment)

    (tmp_path / "mine").mkdir()
    assert missing() == missing("A") == missing("A", **{variable: "A"}) == {}
    stale = {"mine": "the cache of mine is out of date, it was made from another definition of the task"}
    assert missing(**{variable: "A"}) == missing("B", **{variable: "A"}) == stale
    (tmp_path / "mine").rename(tmp_path / "one")
    (tmp_path / cache.STREAMS_FILE).write_text('{"mine": ["one"]}')  # a stream that was cached before
    keywords = {"cache_dir": tmp_path, "vocabulary_dir": vocabulary_dir}
    assert cache.missing(["mine"], **keywords) == {}
    assert cache.missing(["mine"], **keywords, environment={variable: "A"}) == {"mine": "there is no cache yet"}


def test_without_seqio_the_message_says_what_to_install(tmp_path, monkeypatch, vocabulary_dir):
    monkeypatch.setitem(sys.modules, "seqio", None)
    with pytest.raises(UserError, match=r"pip install 'codegen2_jax\[seqio\]'"):
        cache.ensure_cached(("x",), cache_dir=tmp_path, vocabulary_dir=vocabulary_dir, task_modules=["m"])
    with pytest.raises(UserError, match="name at least one"):
        cache.ensure_cached((), cache_dir=tmp_path, vocabulary_dir=vocabulary_dir, task_modules=["m"])


@pytest.fixture(scope="module")
def vocabulary_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("vocabulary")
    train_vocabulary([CORPUS], 400, 10, directory)
    return directory


def test_a_split_without_a_record_names_file_counts_and_reason(tmp_path, vocabulary_dir):
    """Rows that the source rejected, and rows of which the vocabulary leaves nothing."""
    vocabulary = Vocabulary.from_directory(vocabulary_dir)
    ends = [vocabulary.bos_id, vocabulary.eos_id]

    class Task:
        name, splits, source, metric_fns = "t", ("train",), None, ()
        output_features = dict.fromkeys(("inputs", "targets"), SimpleNamespace(vocabulary=vocabulary, required=True))

        def get_dataset(self, **_):
            rows = [{"id": b"t/train/2", "inputs": ends, "targets": [ends[0], 9, ends[1]]}]
            return SimpleNamespace(as_numpy_iterator=lambda: iter(rows))

    rejected = [{"file": "rows.txt", "line": 1, "reason": "empty source"}]
    facts = {"sources": {"rows.txt": "", "my_tasks.py": ""}, "rejected": rejected}
    message = "task t has no usable record for its split 'train': 2 rows of rows.txt were rejected, the first is "
    with pytest.raises(UserError, match=f"{message}rows.txt line 1: empty source; correct them"):
        cache_writing.write_task(Task(), tmp_path, vocabulary=vocabulary, provenance=lambda task, split: facts)
    with pytest.raises(UserError, match="1 rows were rejected, the first is t/train/2 line 0: the input is empty"):
        cache_writing.write_task(Task(), tmp_path, vocabulary=vocabulary)


@pytest.fixture(scope="module")
def toy(tmp_path_factory, vocabulary_dir):
    """The toy tasks cached by two runs at once, while a third names a module that is not there."""
    if importlib.util.find_spec("seqio") is None:  # importing it here would bring TensorFlow into this process
        pytest.skip("SeqIO is not installed: pip install 'codegen2_jax[seqio]'")
    directory = tmp_path_factory.mktemp("toy")
    (directory / "toy_tasks.py").write_text(TASK_MODULE, encoding="utf-8")
    rows = ["train\tt1\tdef add(a, b): return a + b, and words enough to be cut\tadd two", "train\tt2\thello\tworld"]
    rows += ["train\tt2\tagain\tagain", "train\tt3\t\tno input", "train\tt4\tno target\t"]
    rows += [f"train\tu{i}\tline {'x' * (i % 7)} caf\u00e9\tout {i}" for i in range(20)]
    rows += ["test\te1\tfoo bar\t", "test\te2\tfoo baz\t"]
    (directory / "rows.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")
    keywords = {
        "cache_dir": directory / "cache",
        "vocabulary_dir": vocabulary_dir,
        "task_modules": ["toy_tasks"],
        "environment": {"TOY_DIR": str(directory)},
    }
    results = {}

    def run(label, changes):
        try:
            results[label] = cache.ensure_cached(("toy",), **keywords | changes)
        except UserError as error:
            results[label] = str(error)

    requests = {"one": {}, "two": {}, "wrong": {"task_modules": ["no_such_module"]}}
    threads = [threading.Thread(target=run, args=request) for request in requests.items()]
    sys.path.insert(0, str(directory))
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        yield directory, keywords, results
    finally:
        sys.path.remove(str(directory))


@pytest.mark.slow
def test_missing_caches_are_made_by_a_child_and_its_error_arrives(toy):
    directory, keywords, results = toy
    assert results["one"] == results["two"] == ("toy_b", "toy_a")
    assert "task module no_such_module cannot be found" in results["wrong"]
    assert not list((directory / "cache").glob("**/*.writing*"))
    # A second call finds everything current: no child, hence no report about one.
    assert cache.ensure_cached(("toy_a", "toy_b"), **keywords) == ("toy_a", "toy_b")
    with pytest.raises(UserError, match="toy_a would be learned more than once"):
        cache.ensure_cached(("toy", "toy_a"), **keywords)


@pytest.mark.slow
def test_info_accounts_for_every_row(toy, vocabulary_dir):
    directory, _, _ = toy
    info = cache.read_info(directory / "cache", "toy_a")
    train = info["splits"]["train"]
    assert train["examples"] + train["rejected_count"] == 25
    assert {row["line"]: row["reason"] for row in train["rejected"]} == BAD_ROWS
    encode = Vocabulary.from_directory(vocabulary_dir).encode
    used = list(cache.open_split(directory / "cache", "toy_a", "train"))
    for side, limit in (("inputs", 14), ("targets", 10)):
        cut = [max(len(encode(record[f"{side}_text"])) - limit, 0) for record in used]
        assert (train["truncated"][side], train["tokens_cut"][side]) == (np.count_nonzero(cut), sum(cut))
    assert train["truncated"]["inputs"] > 0
    assert info["has_targets"] == {"train": True, "test": False}
    assert info["splits"]["test"]["examples"] == 2
    assert info["metrics"] == ["exact_match"] and info["max_lengths"] == [16, 12] and info["licence"] == "MIT"
    assert info["vocabulary"] == Vocabulary.from_directory(vocabulary_dir).digest
    assert info["environment"] == {"TOY_DIR": str(directory)}
    assert set(info["sources"]) == {str(directory / "rows.txt"), str(directory / "toy_tasks.py")}


@pytest.mark.slow
def test_a_changed_source_makes_the_cache_stale(toy, tmp_path, vocabulary_dir):
    directory, keywords, _ = toy
    digest = Vocabulary.from_directory(vocabulary_dir).digest
    info = cache.read_info(directory / "cache", "toy_a")
    environment = keywords["environment"]
    assert cache.staleness(info, vocabulary_digest=digest, environment=environment) == ""
    moved = json.loads(json.dumps(info).replace(str(directory), str(tmp_path)))
    shutil.copy(directory / "rows.txt", tmp_path / "rows.txt")
    assert cache.staleness(moved, vocabulary_digest=digest, environment={}) == ""
    with (tmp_path / "rows.txt").open("a", encoding="utf-8") as file:
        file.write("train\tnew\tin\tout\n")
    assert "rows.txt has changed" in cache.staleness(moved, vocabulary_digest=digest, environment={})


@pytest.mark.slow
def test_seqio_and_the_loader_give_the_same_examples(toy, vocabulary_dir, program_environment):
    directory, keywords, _ = toy
    variables = {"CODEGEN2_JAX_VOCABULARY": str(vocabulary_dir), "TF_CPP_MIN_LOG_LEVEL": "3"} | keywords["environment"]
    environment = program_environment | variables
    environment["PYTHONPATH"] += f":{directory}"
    command = [sys.executable, "-c", SEQIO_PROGRAM, "toy_a", str(directory / "cache")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout.splitlines()[-1])

    vocabulary = Vocabulary.from_directory(vocabulary_dir)
    texts = ["def f(x):", "", "a</s>b", "  \u00e9\n"]
    assert theirs["encoded"] == theirs["batch"] == [vocabulary.encode(text) for text in texts]
    assert theirs["decoded"] == [vocabulary.decode(vocabulary.encode(text)) for text in texts]
    assert theirs["size"] == vocabulary.size
    assert theirs["error"].startswith("no task or stream toy_c in toy_tasks; did you mean toy")

    split = cache.open_split(directory / "cache", "toy_a", "train")
    used = [row for number, row in enumerate(theirs["rows"]) if number not in BAD_ROWS]
    assert [{side: record[side].tolist() for side in ("inputs", "targets")} for record in split] == used
    for record in split:
        assert record["inputs"].tolist() == [1, *vocabulary.encode(record["inputs_text"])[:14], 2]
    seen = {}
    for batch in evaluation_batches(split, task_id=0, batch_size=8):
        for row in np.flatnonzero(batch["valid_B"]):
            seen[int(batch["record_B"][row])] = {
                "inputs": batch["inputs_BS"][row][batch["inputs_mask_BS"][row]].tolist(),
                "targets": batch["targets_BT"][row][batch["loss_mask_BT"][row]].tolist(),
            }
    assert [seen[number] for number in range(len(split))] == used
