"""Scores depend on the examples alone: not on the batch size, the order of the file, the padding or the devices."""

import dataclasses
import functools
import inspect
import textwrap

import jax
import numpy as np
import pytest

from codegen2_jax.data.loader import evaluation_batches
from codegen2_jax.data.objectives import wrap
from codegen2_jax.data.vocabulary import Vocabulary
from codegen2_jax.evaluation import runner
from codegen2_jax.interop import huggingface
from codegen2_jax.models.language_models import EncoderDecoder
from codegen2_jax.prompts.pool import PromptPool
from codegen2_jax.sharding import partitioning

SCORERS = ("codet5_bleu", "exact_match")
NUM_TASKS = 2


@pytest.fixture(scope="module")
def nano():
    """The packaged model, and functions of a standard module as its inputs, of unequal length."""
    directory = huggingface.resolve_directory("nano_t5")
    config, params = huggingface.load(directory)
    vocabulary = Vocabulary.from_directory(directory)
    functions = [value for _, value in sorted(vars(textwrap).items()) if inspect.isfunction(value)]
    functions += [value for _, value in sorted(vars(inspect).items()) if inspect.isfunction(value)][:9]
    lengths = range(40, 400, 30)
    texts = [inspect.getsource(function)[:length] for function, length in zip(functions, lengths, strict=False)]
    ids = {"bos_id": vocabulary.bos_id, "eos_id": vocabulary.eos_id}
    encoded = [wrap(np.asarray(row, np.int32), max_length=96, **ids) for row in vocabulary.encode_batch(texts)]
    records = [
        {"inputs": row, "targets": row, "inputs_text": text, "targets_text": text}
        for row, text in zip(encoded, texts, strict=True)
    ]
    assert len(records) >= 11 and len({len(row) for row in encoded}) > 4
    return EncoderDecoder(config), params, vocabulary, records


@pytest.fixture(scope="module")
def pool(nano):
    """A pool whose keys are the queries of half the examples: every example has neighbours of its own."""
    model, params, _, records = nano
    choice = dict(assignment="learned", pool_size=6, initialisation="random_unit", selectable="all")
    pool = PromptPool(top_k=2, prompt_length=2, **choice)
    prompt_params, state = pool.init(
        jax.random.key(0), num_tasks=NUM_TASKS, embedding_VD=params["embedding"], query_width=model.config.d_model
    )
    rows = evaluation_batches(records, task_id=0, batch_size=1)
    query = jax.jit(model.query)
    query_ND = np.zeros((len(records), model.config.d_model), np.float32)
    for batch in rows:
        query_ND[batch["record_B"]] = query(params, batch["inputs_BS"], batch["inputs_mask_BS"])
    return pool, {**prompt_params, "keys": query_ND[::2][:6]}, state, query_ND


def outcome(nano, pool, *, beams, batch_size, order=slice(None), mesh=None, devices=1, shapes=None, task=0):
    """Texts and selected keys by the text of the input, and the scores."""
    model, params, vocabulary, records = nano
    prompts, prompt_params, state, query_ND = pool
    records, query_ND = records[order], query_ND[order]
    layout = partitioning.make_layout(mesh, devices=jax.devices()[:devices])
    model = dataclasses.replace(model, constrain=layout.constrain)
    placed = {
        "model": jax.device_put(params, partitioning.shardings(layout, model.param_axes(), model.param_shapes)),
        "prompt": jax.device_put(prompt_params, partitioning.replicated(layout)),
    }
    state = jax.device_put(state, partitioning.replicated(layout))

    def prompt(params, prompt_state, batch):
        prompt_BPD, aux = prompts.prompt(
            params["prompt"], prompt_state, batch["task_B"], batch["query_BD"], selection="pool"
        )
        return prompt_BPD, aux["selected_BK"]

    predict = runner.make_predict(model, prompt, max_length=24, num_beams=beams, length_penalty=1.0)
    batches = evaluation_batches(records, task_id=task, batch_size=batch_size, queries=query_ND, shapes=shapes)
    put = functools.partial(partitioning.put_batch, layout)
    texts, selected = runner.decode_split(predict, placed, state, batches, vocabulary, put=put)
    assert sorted(texts) == list(range(len(records)))
    names = [record["inputs_text"] for record in records]
    hypotheses = [texts[i] for i in range(len(records))]
    return (
        {name: (texts[i], tuple(selected[i].tolist())) for i, name in enumerate(names)},
        runner.score(hypotheses, [record["targets_text"] for record in records], SCORERS),
    )


@pytest.fixture(scope="module", params=[1, 5])
def expected(request, nano, pool):
    """The number of beams, and what one example at a time on one device gives."""
    found = outcome(nano, pool, beams=request.param, batch_size=1)
    texts = [text for text, _ in found[0].values()]
    assert len(set(texts)) > len(texts) // 2, "too few different predictions to tell anything"
    assert len({keys for _, keys in found[0].values()}) > 2, "every example chose the same keys"
    return request.param, found


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 3},
        {"batch_size": 8},
        {"batch_size": 4, "order": slice(None, None, -1)},
        {"batch_size": 4, "shapes": [(128, 128)]},
        {"batch_size": 8, "devices": 8},
        {"batch_size": 8, "mesh": {"data": 2, "fsdp": 2, "model": 2}, "devices": 8},
    ],
    ids=["3", "8", "reversed", "padded", "8 devices", "2 x 2 x 2 devices"],
)
def test_predictions_selection_and_scores_are_those_of_one_example_at_a_time(change, expected, nano, pool):
    beams, (predictions, scores) = expected
    found, found_scores = outcome(nano, pool, beams=beams, **change)
    assert found == predictions
    assert found_scores == pytest.approx(scores, abs=1e-9)


def test_targets_and_the_task_are_never_read(expected, nano, pool):
    """Poisoned targets and another task id change nothing (specification, T8)."""
    beams, (predictions, _) = expected
    model, params, vocabulary, records = nano
    poisoned = [record | {"targets": record["targets"][::-1].copy()} for record in records]
    found, _ = outcome((model, params, vocabulary, poisoned), pool, beams=beams, batch_size=4, task=1)
    assert found == predictions
