"""Pretraining of a decoder on a user's own files: cached, examined, learned, exported, and exact after a kill."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from codegen2_jax.data import cache, infilling
from codegen2_jax.errors import UserError
from codegen2_jax.evaluation import intrinsic
from codegen2_jax.interop import huggingface
from codegen2_jax.models.codegen import CodeGenConfig
from codegen2_jax.models.t5 import T5Config
from codegen2_jax.training.initialisation import ModelSource
from codegen2_jax.training.optimizers import AdamW, schedule
from codegen2_jax.training.packed_documents import PackedDocuments, Source
from codegen2_jax.training.pretraining import Pretraining

pytest.importorskip("seqio", reason="caching the tasks needs the extra 'seqio'")

TINY = CodeGenConfig(
    vocab_size=4096, d_model=32, d_ff=64, num_layers=1, num_heads=4, head_dim=8, rotary_dim=4, max_positions=256
)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoder")
    (folder / "src").mkdir()
    for number in range(60):
        text = f"def area_{number}(width, height):\n    '''The area of figure {number}.'''\n    return width * height\n"
        (folder / "src" / f"area_{number:02}.py").write_text(text * (1 + number % 3) + f"\n# end of file {number}\n")
    corpus = {"name": "own", "kind": "directory", "path": str(folder / "src"), "extensions": ("py",)}
    return Pretraining(
        model_dir=str(folder / "run"),
        source=ModelSource(init_from="random", vocabulary="nano_codegen2", config=TINY),
        data=PackedDocuments(
            corpora=(corpus | {"near_duplicates": None, "valid_per_mille": 150},),
            sources=(Source(task="own"),),
            objective=infilling.Mixture(corrupt=infilling.SpanCorruption(max_spans=3)),
            sequence_length=48,
            cache_dir=str(folder / "cache"),
        ),
        optimizer=AdamW(learning_rate=1e-2, schedule="cosine", warmup_steps=2, end_fraction=0.1, clip_norm=1.0),
        num_steps=16,
        batch_size=16,
        accumulation_steps=2,
        z_loss=1e-4,
        seed=0,
        evaluate_every=8,
        evaluation_batches=1,
        save_every=8,
        export_dtype="float32",
    )


@pytest.fixture(scope="module")
def finished(job):
    job.run(config_text="", profile_steps=(3, 5))
    return Path(job.model_dir)


def test_it_learns_and_says_how_much_in_bits_per_byte(finished):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    bits = [line["own, bits per byte"] for line in lines if "own, bits per byte" in line]
    assert len(bits) == 2 and bits[1] < bits[0] < 8
    summary = json.loads((finished / "scores.json").read_text())["summary"]["valid"]
    assert set(summary) == {"loss own", "loss own, objective", "bits_per_byte own"}
    seen = json.loads((finished / "scores.json").read_text())["seen"]["own"]
    assert seen["tokens"] > 0 and seen["epochs"] > 1 and seen["bytes"] > seen["tokens"]


def test_the_steps_that_were_asked_for_are_traced(finished, job):
    assert list((finished / "profile").rglob("*.xplane.pb"))
    with pytest.raises(UserError, match="profile_steps=3:99 ends behind the run's last step, 16"):
        dataclasses.replace(job, num_steps=16, model_dir=str(finished / "other")).run(
            config_text="", profile_steps=(3, 99)
        )


def test_evaluation_problems_are_looked_for_before_the_first_step(finished):
    found = json.loads((finished / "contamination.json").read_text())
    assert found["corpus"]["records"] > 40 and "pytask_generate" in found["sets"]
    assert "pytask_generate" in (finished / "contamination.txt").read_text()


def test_the_export_loads_with_its_vocabulary(finished, job):
    loaded = ModelSource(init_from=str(finished / "export")).load()
    assert dataclasses.replace(loaded.model.config, dropout_rate=0.0) == dataclasses.replace(
        TINY,
        bos_token_id=loaded.vocabulary.eos_id,
        eos_token_id=loaded.vocabulary.eos_id,
        pad_token_id=loaded.vocabulary.eos_id,
        decoder_start_token_id=loaded.vocabulary.sep_id,
    )
    generation = json.loads((finished / "export" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == loaded.vocabulary.eos_id


def test_going_on_from_a_checkpoint_gives_the_same_weights_byte_for_byte(finished, job, tmp_path):
    shutil.copytree(finished / "checkpoints" / "8", tmp_path / "checkpoints" / "8")
    dataclasses.replace(job, model_dir=str(tmp_path)).run(config_text="")
    names = [path / "export" / "model.safetensors" for path in (finished, tmp_path)]
    assert names[0].read_bytes() == names[1].read_bytes()


def test_a_batch_and_a_step_can_be_looked_at_without_training(job, tmp_path, capsys, finished):
    dataclasses.replace(job, model_dir=str(tmp_path)).show_batch()
    shown = capsys.readouterr().out
    assert "own, document" in shown and "<sep><mask_1>" in shown and "<eom>" in shown
    dataclasses.replace(job, model_dir=str(tmp_path)).dry_run()
    assert "batch               16 x 47 target tokens" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_what_cannot_work_is_refused_before_anything_is_cached(job, tmp_path):
    def run(**changes):
        dataclasses.replace(job, model_dir=str(tmp_path), **changes).run(config_text="")

    with pytest.raises(UserError, match="sequence_length=257 exceeds the model's max_positions=256"):
        run(data=dataclasses.replace(job.data, sequence_length=257))
    with pytest.raises(UserError, match="named once"):
        run(data=dataclasses.replace(job.data, sources=(Source(task="own"), Source(task="own"))))
    t5 = T5Config(
        vocab_size=6000, d_model=16, d_ff=32, num_encoder_layers=1, num_decoder_layers=1, num_heads=2, head_dim=8
    )
    with pytest.raises(UserError, match="packed documents train a decoder"):
        run(source=ModelSource(init_from="random", vocabulary="nano_t5", config=t5))
    with pytest.raises(UserError, match="accumulation_steps=3 does not divide batch_size=16"):
        run(accumulation_steps=3)
    with pytest.raises(UserError, match="ORDERED_REDUCTION=-1 parts"):
        run(ordered_reduction=-1)
    with pytest.raises(UserError, match="z_loss=inf is no finite number from 0"):
        run(z_loss=float("inf"))
    with pytest.raises(UserError, match="dtype='bf16' is unknown; choose one of .*'bfloat16'"):
        run(export_dtype="bf16")
    for length in (1, -4):
        with pytest.raises(UserError, match=f"sequence_length={length} holds no token and its target"):
            dataclasses.replace(job.data, sequence_length=length)


def test_left_to_right_costs_add_up_and_holes_are_scored_and_filled(finished, job):
    """Costs do not depend on how a file is cut into rows but through its context, and are those of the model's loss."""
    loaded = ModelSource(init_from=str(finished / "export")).load()
    model, params, vocabulary = loaded.model, loaded.params, loaded.vocabulary
    split = cache.open_split(Path(job.data.cache_dir), "own", "valid")
    documents = [np.asarray(split[n]["targets"], np.int32) for n in range(len(split))]
    costs = intrinsic.left_to_right(model, params, documents, vocabulary, length=40)
    texts = [vocabulary.decode(tokens) for tokens in documents]
    assert costs.bytes.sum() == sum(len(text.encode()) for text in texts)
    assert 0 < costs.bits_per_byte < 8
    examples = intrinsic.holes(texts, per_file=2, seed=0, most_lines=2)
    assert examples and all(hole.prefix + hole.middle + hole.suffix == texts[hole.file] for hole in examples)
    assert all(hole.middle.strip() and hole.middle.endswith("\n") for hole in examples)
    for form in intrinsic.FORMS:
        asked = intrinsic.in_holes(model, params, examples, vocabulary, form=form, max_context=32, generated=3)
        assert np.isfinite(asked.nats).all() and (asked.nats > 0).all()
        assert np.isfinite(asked.exact).sum() == 3 and set(asked.exact[np.isfinite(asked.exact)]) <= {0.0, 1.0}
    asked = {"form": "infill", "max_context": 32}
    alone = [intrinsic.in_holes(model, params, [hole], vocabulary, **asked).nats[0] for hole in examples[:2]]
    together = intrinsic.in_holes(model, params, examples[:2], vocabulary, **asked)
    np.testing.assert_allclose(alone, together.nats, rtol=1e-4)


def test_the_published_schedule_at_the_published_steps():
    """jaxformer's 1B_nl: rise over 3,000 steps, a cosine of 300,000, then the end rate."""
    rate = schedule(2e-4, "cosine", warmup_steps=3000, num_steps=350_000, end_fraction=0.1, decay_steps=300_000)
    for step, wanted in ((1500, 1e-4), (3000, 2e-4), (153_000, 1.1e-4), (303_000, 2e-5), (350_000, 2e-5)):
        assert abs(float(rate(step - 1 if step <= 3000 else step)) - wanted) < 1e-9


def test_huggingface_reads_what_was_exported(finished):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    export = finished / "export"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(export).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(export)
    ids = tokenizer("def area(width):\n    return", return_tensors="pt").input_ids
    config, params = huggingface.load(export)
    loaded = ModelSource(init_from=str(export)).load()
    assert ids[0].tolist() == loaded.vocabulary.encode("def area(width):\n    return")
    length = ids.shape[1]
    batch = {
        "tokens_BT": ids.numpy(),
        "positions_BT": np.arange(length)[None],
        "segments_BT": np.ones((1, length), np.int32),
        "bidirectional_BT": np.zeros((1, length), bool),
    }
    with torch.no_grad():
        reference = theirs(ids).logits.numpy()
    np.testing.assert_allclose(loaded.model.logits(params, batch), reference, atol=1e-5)
    assert config.vocab_size == 4096
