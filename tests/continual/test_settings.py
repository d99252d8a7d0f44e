"""Settings of a stream that make no sense are refused before anything runs, in one line."""

import types

import pytest

from codegen2_jax.continual.replay import Replay
from codegen2_jax.continual.setup import Setup
from codegen2_jax.continual.stream import ContinualLearning
from codegen2_jax.continual.stream_tasks import left_out
from codegen2_jax.continual.synthetic_queries import SyntheticRetrieval
from codegen2_jax.decoding.settings import Generation
from codegen2_jax.errors import UserError
from codegen2_jax.evaluation.runner import Decoding
from codegen2_jax.models.decoder_only import DecoderOnly
from codegen2_jax.models.language_models import EncoderDecoder
from codegen2_jax.models.t5 import T5Config
from codegen2_jax.training.initialisation import ModelSource, check_seed

JOB = {"model_dir": "x", "method": "toy", "stream": "tiny_ci", "source": None, "optimizer": None, "labels": ()}
JOB |= {"steps_per_task": 1, "batch_size": 1, "seed": 0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patience": -1}, "patience=-1 is negative"),
        ({"seed": 2**32}, r"seed=4294967296 is out of range; it must lie in \[0, 2\^32\)"),
        ({"seed": -1}, "seed=-1 is out of range"),
        ({"stream": "tiny_copy,"}, "stream='tiny_copy,' has an empty name beside a comma"),
        ({"stream": "tiny_copy,,tiny_upper"}, "empty name"),
    ],
)
def test_what_makes_no_sense_is_refused(change, message):
    ContinualLearning(**JOB, leave_out=())
    with pytest.raises(UserError, match=message):
        ContinualLearning(**{**JOB, **change})


def test_rows_that_do_not_divide_among_the_devices_are_refused_before_anything_is_scored(tmp_path):
    """Eight devices: the rows of a micro-batch count, and those that replay adds to it or makes a batch of its own."""
    config = T5Config(
        vocab_size=6000, d_model=16, d_ff=32, num_encoder_layers=1, num_decoder_layers=1, num_heads=2, head_dim=8
    )
    source = ModelSource(init_from="random", vocabulary="nano_t5", config=config)
    given = {**JOB, "source": source, "batch_size": 16, "accumulation_steps": 2}
    for change, message in (
        ({"batch_size": 8}, "each of 2 micro-batches: 4 rows do not divide by mesh axis 'data' x 'fsdp' of size 8"),
        ({"replay": Replay(size=9, batch_size=4)}, "each of 2 micro-batches: 10 rows"),
        ({"replay": Replay(size=9, schedule="epoch_end", batch_size=6)}, "replay: 6 rows .*; make replay batch_size"),
    ):
        with pytest.raises(UserError, match=message):
            Setup(ContinualLearning(**{**given, **change}), tmp_path, with_data=False)


def test_only_replayed_rows_that_join_a_batch_are_cut_with_it():
    given = {**JOB, "batch_size": 12, "accumulation_steps": 3}
    ContinualLearning(**given, replay=Replay(size=9, schedule="epoch_end", batch_size=8))
    with pytest.raises(UserError, match="8 replayed rows a step are no multiple of accumulation_steps=3"):
        ContinualLearning(**given, replay=Replay(size=9, batch_size=8))


def test_every_kind_of_job_refuses_a_seed_that_a_key_cannot_hold():
    check_seed(2**32 - 1)
    with pytest.raises(UserError, match="seed=4294967297"):
        SyntheticRetrieval(
            model_dir="x", prompt=None, optimizer=None, num_tasks=3, steps_per_task=1, batch_size=1, seed=2**32 + 1
        )  # fmt: skip


def test_a_length_penalty_that_leaves_float32_is_refused():
    for settings in (Decoding, Generation):
        with pytest.raises(UserError, match="length_penalty=-50 is out of range"):
            settings(length_penalty=-50)
        settings(length_penalty=0.0)


def test_a_pooling_is_checked_before_there_is_any_input():
    t5, decoder = EncoderDecoder(config=None), DecoderOnly(config=None)
    t5.check_pooling("first"), decoder.check_pooling("last")
    with pytest.raises(UserError, match="'last' means nothing for an encoder"):
        t5.check_pooling("last")
    with pytest.raises(UserError, match="'first' means nothing for a decoder"):
        decoder.check_pooling("first")


def test_a_task_left_out_is_one_of_the_stream():
    def chosen(leave_out):
        config = types.SimpleNamespace(leave_out=leave_out, without_signal=("refine", "elsewhere"))
        return left_out(config, ["generate", "refine"])

    assert chosen(None) == ["refine"] and chosen(()) == [] and chosen(("generate",)) == ["generate"]
    with pytest.raises(UserError, match="'refin' is no task of this stream, which has generate, refine"):
        chosen(("refin",))
