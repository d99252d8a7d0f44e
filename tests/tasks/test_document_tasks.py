"""Document tasks: what the cache holds, what its info.json says, and going on where a killed run stopped."""

import importlib.util
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from codegen2_jax.data import cache, contamination, documents
from codegen2_jax.data.document_selection import SPLITS
from codegen2_jax.data.vocabulary import Vocabulary, train_vocabulary
from codegen2_jax.errors import UserError

needs_seqio = pytest.mark.skipif(
    importlib.util.find_spec("seqio") is None, reason="SeqIO is not installed: pip install 'codegen2_jax[seqio]'"
)


def text_of(seed, words=150):
    return " ".join(f"w{seed}x{number}" for number in range(words)) + "\ncaf\u00e9\n"


@pytest.fixture(scope="module")
def vocabulary_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("vocabulary")
    train_vocabulary([text_of(seed) for seed in range(20)], 300, 10, directory)
    return directory


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """A directory, JSON lines and three parquet files, with the dictionaries that describe them."""
    root = tmp_path_factory.mktemp("corpora")
    for number in range(120):
        path = root / "code" / f"d{number % 3}" / f"{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text_of(number))
    (root / "code/copy.py").write_text(text_of(0))
    (root / "code/binary.py").write_bytes(b"a\0b")
    rows = [{"body": text_of(1000 + number), "name": f"r/{number}.rb"} for number in range(80)]
    (root / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in [*rows, {"name": "x"}, rows[3]]) + "\n{\n")
    (root / "parquet").mkdir()
    for shard in range(3):
        table = pyarrow.Table.from_pylist([{"content": text_of(2000 + 100 * shard + row)} for row in range(40)])
        pyarrow.parquet.write_table(table, root / "parquet" / f"{shard}.parquet")
    tasks = documents.parse_tasks([
        {"name": "documents_directory", "kind": "directory", "path": str(root / "code"), "extensions": ["py"]},
        {"name": "documents_jsonl", "kind": "jsonl", "path": str(root / "rows.jsonl"), "text_field": "body",
         "id_field": "name"},
        {"name": "my_parquet", "kind": "parquet", "path": str(root / "parquet/*.parquet")},
    ])  # fmt: skip
    return root, tasks


@pytest.fixture(scope="module")
def cached(tmp_path_factory, vocabulary_dir, corpora):
    """All three cached by one child: (cache directory, keywords of ensure_cached)."""
    _, tasks = corpora
    keywords = {
        "cache_dir": tmp_path_factory.mktemp("cache"), "vocabulary_dir": vocabulary_dir,
        "task_modules": ["tasks.documents"], "environment": documents.environment(tasks),
    }  # fmt: skip
    names = tuple(task.name for task in tasks)
    assert cache.ensure_cached(names, **keywords) == names
    return keywords["cache_dir"], keywords


@needs_seqio
@pytest.mark.slow
def test_records_are_whole_documents(cached, corpora, vocabulary_dir):
    directory, _ = cached
    vocabulary = Vocabulary.from_directory(vocabulary_dir)
    for task in corpora[1]:
        corpus = documents.Corpus(task)
        for split in SPLITS:
            expected = list(corpus.documents(split))
            records = cache.open_split(directory, task.name, split)
            assert [record["id"] for record in records] == [one.id for one in expected] and expected
            for record, document in zip(records, expected, strict=True):
                assert set(record) == {"id", "bytes", "targets"} and record["targets"].dtype == np.int32
                assert record["targets"].tolist() == vocabulary.encode(document.text)
                assert vocabulary.decode(record["targets"]) == document.text
                assert record["bytes"] == len(document.text.encode()) > len(document.text)
            assert list(contamination.cached_records(records, vocabulary)) == [(d.id, d.text) for d in expected]


@needs_seqio
@pytest.mark.slow
def test_info_accounts_for_every_document(cached, corpora):
    directory, keywords = cached
    info = cache.read_info(directory, "documents_directory")
    rejected = {row["file"]: row["reason"] for entry in info["splits"].values() for row in entry["rejected"]}
    assert rejected == {"binary.py": "binary (has a NUL byte)", "d0/0.py": "the same text as another: copy.py"}
    total = 0
    for name in SPLITS:
        entry = info["splits"][name]
        counts = entry["counts"]
        assert entry["examples"] == counts["examples"] and entry["rejected_count"] == counts["rejected"]
        assert counts["bytes"] == sum(record["bytes"] for record in cache.open_split(directory, info["task"], name))
        total += entry["examples"] + entry["rejected_count"]
    assert total == 122 and len(info["sources"]) == 123  # and the task module
    assert info["settings"]["definition"]["extensions"] == ["py"] and len(info["settings"]["corpus_sha256"]) == 64
    variable = "CODEGEN2_JAX_DOCUMENTS_documents_directory"
    assert info["environment"] == {variable: keywords["environment"][variable]}
    jsonl = cache.read_info(directory, "documents_jsonl")
    entries = jsonl["splits"].values()
    assert sum(entry["examples"] + entry["rejected_count"] for entry in entries) == 83
    reasons = {reason for entry in entries for reason in entry["counts"]["reasons"]}
    assert reasons == {"no text in the field body", "the same text as another", "malformed JSON"}
    assert not list(directory.glob(".*.work")) and not list(directory.glob(".*.writing"))


@needs_seqio
@pytest.mark.slow
def test_a_changed_corpus_or_description_is_cached_again(cached, corpora):
    directory, keywords = cached
    names = tuple(task.name for task in corpora[1])
    now = {"cache_dir": directory, "vocabulary_dir": keywords["vocabulary_dir"]}
    assert cache.missing(names, **now, environment=keywords["environment"]) == {}
    changed = dict(keywords["environment"])
    variable = "CODEGEN2_JAX_DOCUMENTS_documents_jsonl"
    changed[variable] = json.dumps(json.loads(changed[variable]) | {"near_duplicates": 0.5})
    assert set(cache.missing(names, **now, environment=changed)) == {"documents_jsonl"}
    with pytest.raises(UserError, match="no task or stream documents_other"):
        cache.ensure_cached(("documents_other",), **keywords)


def start(corpus, cache_dir, vocabulary_dir, program_environment):
    command = [sys.executable, "-u", "-m", "codegen2_jax.cache_tasks", f"--tasks={corpus.name}"]
    command += [f"--cache_dir={cache_dir}", f"--vocabulary={vocabulary_dir}", "--task_modules=tasks.documents"]
    environment = program_environment | documents.environment([corpus]) | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


@needs_seqio
@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_shards_that_are_done(tmp_path, vocabulary_dir, program_environment):
    """SIGKILL when two of eight shards are done: the next run takes them, and the result is that of an unbroken one."""
    for shard in range(8):
        table = pyarrow.Table.from_pylist([{"content": text_of(1000 * shard + row, 400)} for row in range(150)])
        pyarrow.parquet.write_table(table, tmp_path / f"{shard}.parquet")
    (corpus,) = documents.parse_tasks([{"name": "big", "kind": "parquet", "path": str(tmp_path / "*.parquet")}])
    killed = start(corpus, tmp_path / "one", vocabulary_dir, program_environment)
    for line in killed.stdout:
        if "shard 2 of 8 is done" in line:
            os.kill(killed.pid, signal.SIGKILL)
            break
    assert killed.wait(timeout=60) == -signal.SIGKILL
    killed.stdout.close()
    assert not (tmp_path / "one/big").exists()
    done = len(list((tmp_path / "one/.big.work").glob("*.array_record")))
    assert 2 <= done < 8 and len(list((tmp_path / "one/.big.work").glob("*.facts.npz"))) == 8
    output, _ = start(corpus, tmp_path / "one", vocabulary_dir, program_environment).communicate(timeout=300)
    assert output.count("was there already") == done, output
    assert output.count("is done") == 16 - done, output
    assert not list((tmp_path / "one").glob(".big.w*"))
    output, _ = start(corpus, tmp_path / "two", vocabulary_dir, program_environment).communicate(timeout=300)
    assert "was there already" not in output
    one, two = (cache.read_info(tmp_path / name, "big") for name in ("one", "two"))
    assert one["splits"] == two["splits"] and one["splits"]["train"]["examples"] > 1100


REGISTERED = """
import sys
import seqio, tasks.documents
print(*sorted(name for name in seqio.TaskRegistry.names() if name.startswith("documents")))
task = seqio.TaskRegistry.get("documents_codetask_java")
try:
    task.source.num_input_examples("train")
except ValueError as error:
    print(error)
sys.stdout.flush()
"""


@needs_seqio
@pytest.mark.slow
def test_importing_registers_without_reading_anything(program_environment):
    environment = {name: value for name, value in program_environment.items() if not name.endswith("_DIR")}
    done = subprocess.run([sys.executable, "-c", REGISTERED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    languages = [f"documents_codetask_{language}" for language in ("c_sharp", "java", "ruby")]
    assert lines[0].split() == [*languages, "documents_python", "documents_text"]
    assert lines[1].startswith("CODETASK_CL_DIR is not set")
