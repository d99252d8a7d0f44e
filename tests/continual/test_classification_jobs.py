"""A head on the last state: it learns, what is kept is the best epoch, and a run that was stopped goes on."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_decoders import byte_vocabulary

from codegen2_jax.continual import classification
from codegen2_jax.continual.classification import Classification
from codegen2_jax.errors import PreemptedError, UserError
from codegen2_jax.interop import huggingface
from codegen2_jax.models.codegen import CodeGenConfig
from codegen2_jax.models.decoder_only import DecoderOnly
from codegen2_jax.models.language_models import EncoderDecoder
from codegen2_jax.models.t5 import T5Config
from codegen2_jax.training import signals
from codegen2_jax.training.initialisation import ModelSource
from codegen2_jax.training.optimizers import AdamW

SIZES = {"d_model": 32, "d_ff": 64, "num_layers": 1, "num_heads": 8, "head_dim": 4, "rotary_dim": 4}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """(model, data): the answer is whether the passage is of one kind of letters."""
    model, data = tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("data")
    vocabulary = byte_vocabulary(model)
    decoder = DecoderOnly(CodeGenConfig(vocab_size=vocabulary.size, max_positions=64, prefix_lm=True, **SIZES))
    huggingface.save(model, decoder.config, jax.jit(decoder.init_params)(jax.random.key(0)), "float32")
    rng = np.random.default_rng(0)
    for name, count in (("train", 80), ("dev", 24)):
        rows = []
        for n in range(count):
            letters = "abc" if n % 3 else "xyz"
            passage = "".join(rng.choice(list(letters), rng.integers(3, 9)))
            rows.append(json.dumps({"question": "?", "passage": passage, "answer": n % 3 == 0}))
        (data / f"{name}.jsonl").write_text("\n".join(rows))
    return str(model), str(data)


def job(places, run, **changes):
    model, data = places
    options = {"benchmark": "boolq", "directory": data, "num_epochs": 4, "batch_size": 8, "seed": 0, "max_tokens": 64}
    options["source"] = ModelSource(init_from=model)
    optimizer = AdamW(learning_rate=3e-3, schedule="constant", warmup_steps=1, clip_norm=1.0)
    return Classification(model_dir=str(run), optimizer=optimizer, **(options | changes))


def test_a_limit_above_the_size_of_a_split_takes_every_example_once(places, tmp_path, monkeypatch):
    seen = {}
    runtime = classification.Runtime

    def watched(config, loaded, splits):
        seen.update({name: [one.id for one in questions] for name, questions in splits.items()})
        return runtime(config, loaded, splits)

    monkeypatch.setattr(classification, "Runtime", watched)
    job(places, tmp_path, limit=20, num_epochs=1).run(config_text="x")
    assert [len(seen[name]) for name in ("train", "valid", "test")] == [20, 8, 20]
    assert all(len(set(ids)) == len(ids) for ids in seen.values())
    result = json.loads((tmp_path / "evaluation.json").read_text())["benchmarks"]["boolq_head"]
    assert (result["problems"], result["of"]) == (20, 24)
    with pytest.raises(UserError, match="limit=0 leaves no example"):
        job(places, tmp_path, limit=0)


def test_it_learns_and_a_stopped_run_gives_the_same_result(places, tmp_path, monkeypatch, capsys):
    job(places, tmp_path / "whole").run(config_text="x", profile_steps=(4, 6))
    assert list((tmp_path / "whole/profile").rglob("*.xplane.pb"))
    record = json.loads((tmp_path / "whole/evaluation.json").read_text())
    result = record["benchmarks"]["boolq_head"]
    assert result["metrics"]["accuracy"]["value"] > 90 > 67 > result["metrics"]["majority"]["value"]
    assert result["method"] == "head" and sum(result["predicted"].values()) == result["problems"] == 24

    class Once(signals.StopSignal):
        """Asks to stop in the middle of the second epoch; an epoch has nine steps."""

        seen = 0

        @property
        def requested(self):
            Once.seen += 1
            return Once.seen > 12

    with monkeypatch.context() as patch:
        patch.setattr(classification, "StopSignal", Once)
        with pytest.raises(PreemptedError):
            job(places, tmp_path / "half").run(config_text="x")
    job(places, tmp_path / "half").run(config_text="x")
    again = json.loads((tmp_path / "half/evaluation.json").read_text())["benchmarks"]["boolq_head"]
    assert again["valid_accuracy"] == result["valid_accuracy"] and again["predicted"] == result["predicted"]
    capsys.readouterr()
    job(places, tmp_path / "half").run(config_text="x", profile_steps=(4, 6))
    said = capsys.readouterr().out
    assert "is finished" in said and "profile_steps=4:6: no step is left" in said


def test_the_last_state_is_that_of_the_last_true_token(places):
    model = DecoderOnly(CodeGenConfig(vocab_size=64, max_positions=64, prefix_lm=True, **SIZES))
    params = model.init_params(jax.random.key(0))
    tokens_BS = jnp.asarray([[5, 6, 7, 0], [5, 6, 7, 9]])
    mask_BS = jnp.asarray([[1, 1, 1, 0], [1, 1, 1, 1]], bool)
    x_BD = model.last_state(params, tokens_BS, mask_BS)
    alone_D = model.last_state(params, tokens_BS[:1, :3], mask_BS[:1, :3])[0]
    np.testing.assert_allclose(x_BD[0], alone_D, atol=1e-5)
    assert not np.allclose(x_BD[0], x_BD[1])
    sizes = {"d_model": 16, "head_dim": 4, "d_ff": 32, "num_encoder_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
    t5 = EncoderDecoder(T5Config(vocab_size=64, **sizes))
    weights = t5.init_params(jax.random.key(1))
    x_BD = t5.last_state(weights, tokens_BS, mask_BS)
    np.testing.assert_allclose(x_BD[0], t5.last_state(weights, tokens_BS[:1, :3], mask_BS[:1, :3])[0], atol=1e-5)


def test_eight_devices_cut_another_way_give_the_same(places, tmp_path):
    """The mesh by default gives each device rows; here weights and heads are cut as well."""
    records = []
    for name, mesh in (("rows", None), ("all", {"data": 2, "fsdp": 2, "model": 2})):
        job(places, tmp_path / name, mesh=mesh, axes={"vocab": None}, num_epochs=2).run(config_text=name)
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        losses = [line["loss"] for line in lines if "loss" in line]
        records.append((losses, (tmp_path / name / "predictions.jsonl").read_text()))
    (losses, found), (other, again) = records
    assert len(losses) > 1 and other == pytest.approx(losses, rel=1e-4) and again == found


def test_what_the_devices_cannot_do_is_refused(places, tmp_path):
    with pytest.raises(UserError, match="batch_size: 4 rows"):
        job(places, tmp_path / "rows", batch_size=4).run(config_text="")
    with pytest.raises(UserError, match="each of 2 micro-batches"):
        job(places, tmp_path / "micro", accumulation_steps=2).run(config_text="")
    source = ModelSource(init_from=places[0], attention="splash")
    with pytest.raises(UserError, match="ATTENTION='splash'"):
        job(places, tmp_path / "kernel", source=source).run(config_text="")


def test_mistakes_are_refused(places, tmp_path):
    with pytest.raises(UserError, match="BOOLQ_DIR"):
        job(places, tmp_path, directory=None).run(config_text="")
    with pytest.raises(UserError, match="exceeds the 72 training examples"):
        job(places, tmp_path / "b", batch_size=512).run(config_text="")
    with pytest.raises(UserError, match="num_epochs=0"):
        job(places, tmp_path, num_epochs=0)
