"""PyTask-CL: enough examples, no leak between splits, the same in every process, and the SeqIO way."""

import ast
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from codegen2_jax.data import pytask_cl
from codegen2_jax.data.sources import SPLITS, split_of
from codegen2_jax.data.vocabulary import Vocabulary, train_vocabulary

GOLDEN = Path(__file__).parent.parent / "golden" / "pytask_cl.json"


def made(task):
    return pytask_cl.examples_of(task).examples


@pytest.mark.parametrize("task", pytask_cl.TASKS)
def test_there_are_enough_examples_and_every_function_is_accounted_for(task):
    result = pytask_cl.examples_of(task)
    sizes = {split: len(result.examples[split]) for split in SPLITS}
    assert sizes["train"] >= 1200 and sizes["valid"] >= 100 and sizes["test"] >= 100, sizes
    for split, counts in result.counts.items():
        reasons = {name: count for name, count in counts.items() if name not in ("functions", "examples")}
        assert sum(reasons.values()) + counts["examples"] == counts["functions"]
        assert counts["examples"] == sizes[split]


@pytest.mark.parametrize("task", pytask_cl.TASKS)
def test_no_file_and_no_text_is_in_two_splits(task):
    files, texts = {}, set()
    for split in SPLITS:
        files[split] = {example.id.partition("::")[0] for example in made(task)[split]}
        assert {split_of(path) for path in files[split]} == {split}
        for example in made(task)[split]:
            text = example.inputs if task != "pytask_refine" else example.targets
            assert text not in texts
            texts.add(text)
    assert not files["train"] & files["test"] and not files["train"] & files["valid"]
    ids = [example.id for split in SPLITS for example in made(task)[split]]
    assert len(ids) == len(set(ids))


def test_a_function_with_another_name_is_the_same_function():
    seen = {}
    for split in SPLITS:
        for example in made("pytask_summarize")[split]:
            node = ast.parse(example.inputs).body[0]
            node.name = "function"
            text = ast.unparse(node)
            assert text not in seen, (example.id, seen[text])
            seen[text] = example.id


def test_texts_are_what_the_tasks_say():
    for example in made("pytask_generate")["test"]:
        sentences, signature = example.inputs.split("\n")
        indented = "\n".join("    " + line for line in example.targets.split("\n"))
        function = ast.parse(f"{signature}\n{indented}").body[0]
        assert ast.get_docstring(function) is None and len(sentences.split()) >= 2
    for example in made("pytask_summarize")["test"]:
        ast.parse(example.inputs)
        assert "\n" not in example.targets and example.targets == " ".join(example.targets.split())
    for example in made("pytask_translate")["test"]:
        assert ast.parse(example.inputs).body[0].name in example.targets.partition("(")[0]
        assert example.targets.endswith("}")
    for example in made("pytask_refine")["test"]:
        assert example.inputs != example.targets and example.inputs.startswith(("def ", "async def "))


def test_copying_solves_nothing():
    for task in pytask_cl.TASKS:
        assert not any(example.inputs == example.targets for split in SPLITS for example in made(task)[split])


@pytest.fixture(scope="module")
def small_library(tmp_path_factory):
    """A part of the real library with files of every split."""
    root = tmp_path_factory.mktemp("library")
    library = Path(sysconfig.get_path("stdlib"))
    for name in ("calendar.py", "shlex.py", "cmd.py", "bdb.py", "heapq.py", "csv.py", "string.py", "textwrap.py"):
        shutil.copy(library / name, root / name)
    return root


DIGEST = (
    "import hashlib, sys; from codegen2_jax.data import pytask_cl\n"
    "digest = hashlib.sha256()\n"
    "for task in pytask_cl.TASKS: digest.update(repr(pytask_cl.examples_of(task, sys.argv[1] or None)).encode())\n"
    "print(digest.hexdigest())"
)


def test_another_process_makes_the_same_examples(small_library, program_environment):
    outputs = set()
    for seed in ("0", "1"):
        environment = program_environment | {"PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", DIGEST, str(small_library)]
        outputs.add(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
    assert len(outputs) == 1 and len(outputs.pop().strip()) == 64


def test_the_examples_are_the_known_ones():
    """A change of the data changes every number measured on it: then this file says so, with old and new counts."""
    golden = json.loads(GOLDEN.read_text())
    version = platform.python_version()
    if version not in golden:
        pytest.skip(f"no golden digest for Python {version}; there is one for {', '.join(golden)}")
    found = {}
    for task in pytask_cl.TASKS:
        digest = hashlib.sha256()
        for split in SPLITS:
            for example in made(task)[split]:
                digest.update(json.dumps([split, example.id, example.inputs, example.targets]).encode())
        found[task] = {split: len(made(task)[split]) for split in SPLITS} | {"sha256": digest.hexdigest()}
    assert found == golden[version]


def test_the_tasks_package_is_imported_without_a_vocabulary(program_environment, tmp_path):
    code = (
        "import seqio, tasks.pytask_cl as module\n"
        "assert module.STREAMS == {'pytask_cl': ('pytask_generate', 'pytask_translate', 'pytask_summarize', "
        "'pytask_refine')}\n"
        "assert set(module.STREAMS['pytask_cl']) <= set(seqio.TaskRegistry.names())\n"
        "assert 'pytask_cl' in seqio.MixtureRegistry.names()\n"
        "from codegen2_jax.errors import UserError\n"
        "try: seqio.TaskRegistry.get('pytask_refine').output_features['inputs'].vocabulary.vocab_size\n"
        "except UserError as error: print(error)\n"
    )
    environment = program_environment | {"CODEGEN2_JAX_VOCABULARY": str(tmp_path / "nothing_here")}
    program = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert program.returncode == 0, program.stderr
    assert "nothing_here" in program.stdout


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    directory = tmp_path_factory.mktemp("vocabulary")
    texts = [text for task in pytask_cl.TASKS for one in made(task)["valid"] for text in (one.inputs, one.targets)]
    train_vocabulary(texts, 1000, 10, directory)
    before = os.environ.get("CODEGEN2_JAX_VOCABULARY")
    os.environ["CODEGEN2_JAX_VOCABULARY"] = str(directory)
    yield Vocabulary.from_directory(directory)
    os.environ.pop("CODEGEN2_JAX_VOCABULARY")
    if before is not None:
        os.environ["CODEGEN2_JAX_VOCABULARY"] = before


@pytest.fixture(scope="module")
def module(vocabulary):
    from tasks import pytask_cl as registered

    return registered


@pytest.mark.parametrize("task", pytask_cl.TASKS)
def test_seqio_gives_wrapped_tokens_and_the_texts(task, module, vocabulary):
    import seqio

    found = list(
        seqio.get_mixture_or_task(task).get_dataset(None, split="test", shuffle=False).as_numpy_iterator()
    )
    examples = made(task)["test"]
    assert [one["id"].decode() for one in found] == [example.id for example in examples]
    limits = dict(zip(("inputs", "targets"), module.MAX_LENGTHS[task], strict=True))
    cut = 0
    for one, example in zip(found, examples, strict=True):
        for side, text in (("inputs", example.inputs), ("targets", example.targets)):
            tokens = vocabulary.encode(text)
            expected = [vocabulary.bos_id, *tokens[: limits[side] - 2], vocabulary.eos_id]
            cut += len(tokens) > limits[side] - 2
            assert one[side].dtype == np.int32 and one[side].tolist() == expected
            assert one[f"{side}_text"].decode() == text
    assert cut > 0 or task in ("pytask_generate", "pytask_refine")  # 1,000 entries cut the longest


def test_preprocessors_are_the_same_eagerly_and_in_a_pipeline(module, vocabulary):
    import tensorflow as tf

    from tasks import sequences

    texts = ["def f(a):\n    return a", "", "a literal </s> inside", "x" * 300]
    batch = tf.constant(texts)
    eager = sequences.VOCABULARY.encode_tf(batch).to_list()
    piped = [row.tolist() for row in tf.data.Dataset.from_tensor_slices(batch).batch(3).map(
        sequences.VOCABULARY.encode_tf).unbatch().as_numpy_iterator()]  # fmt: skip
    single = [sequences.VOCABULARY.encode_tf(tf.constant(text)).numpy().tolist() for text in texts]
    assert eager == piped == single == [vocabulary.encode(text) for text in texts]


def test_the_mixture_draws_in_proportion(module):
    import seqio

    mixture = seqio.MixtureRegistry.get("pytask_cl")
    rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
    assert rates == {task: len(made(task)["train"]) for task in pytask_cl.TASKS}


def test_metrics_take_texts_and_have_the_contract_names(module):
    import seqio

    for name in pytask_cl.TASKS:
        task = seqio.TaskRegistry.get(name)
        first = "codet5_smooth_bleu" if name == "pytask_summarize" else "codet5_bleu"
        assert [metric.__name__ for metric in task.metric_fns] == [first, "exact_match"]
        targets, predictions = ["return the a", "b c"], ["return the a", "b d"]
        scores = {}
        for metric in task.metric_fns:
            scores |= metric(targets, predictions)
        assert scores["exact_match"] == 50.0 and 0 < scores[first] < 100
        assert task.metric_fns[0](targets, targets)[first] == pytest.approx(100.0)
        example = {"targets_text": "r\u00e9f".encode()}
        assert task.postprocess_fn("cut", example=example, is_target=True) == "r\u00e9f"
        assert task.postprocess_fn("predicted", example=example, is_target=False) == "predicted"


def test_provenance_names_every_source_file(module):
    facts = module.provenance("pytask_translate", "train")
    assert facts["licence"] == "PSF-2.0" and facts["max_lengths"] == [128, 128]
    assert facts["counts"] == pytask_cl.examples_of("pytask_translate").counts["train"]
    assert platform.python_version() in facts["settings"]["interpreter"]
    path = str(Path(sysconfig.get_path("stdlib"), "heapq.py"))
    assert facts["sources"][path] == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert any(source.endswith("javascript/from_python.py") for source in facts["sources"])
