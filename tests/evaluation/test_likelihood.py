"""Scores of answers are those of decoding step by step and of the records of training, whatever a prefix-LM sees."""

import functools
import json

import jax
import numpy as np
import pytest
from toy_decoders import byte_vocabulary

from codegen2_jax.data import converters
from codegen2_jax.data import understanding as files
from codegen2_jax.data.infilling import PrefixLM, PrefixSuffixMiddle, SpanCorruption
from codegen2_jax.data.span_records import Piece
from codegen2_jax.decoding import infill
from codegen2_jax.decoding.settings import Generation
from codegen2_jax.decoding.text import complete
from codegen2_jax.errors import UserError
from codegen2_jax.evaluation import intrinsic, records
from codegen2_jax.evaluation.likelihood import Scorer
from codegen2_jax.evaluation.subject import Call, Subject
from codegen2_jax.evaluation.understanding import Choices, LastWords
from codegen2_jax.interop import huggingface
from codegen2_jax.models.codegen import CodeGenConfig
from codegen2_jax.models.decoder_only import DecoderOnly
from codegen2_jax.models.language_models import EncoderDecoder
from codegen2_jax.models.t5 import T5Config
from codegen2_jax.training.initialisation import ModelSource
from codegen2_jax.training.tracking import Tracker

SIZES = {"d_model": 32, "d_ff": 64, "num_heads": 4, "head_dim": 8}
S = 24  # the longest prompt read step by step


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return byte_vocabulary(tmp_path_factory.mktemp("vocabulary"))


@functools.cache
def made(kind, vocab_size, max_positions=64):
    """(model, parameters that are large enough for a wrong mask to show)."""
    if kind == "t5":
        layers = {"num_encoder_layers": 1, "num_decoder_layers": 1}
        model = EncoderDecoder(T5Config(vocab_size=vocab_size, **SIZES, **layers))
    else:
        sizes = {**SIZES, "num_layers": 2, "rotary_dim": 8, "vocab_size": vocab_size, "max_positions": max_positions}
        model = DecoderOnly(CodeGenConfig(**sizes, prefix_lm=kind == "prefix"))
    params = jax.jit(model.init_params)(jax.random.key(0))
    return model, jax.tree.map(lambda w: w * 3 if w.ndim > 1 else w, params)


@functools.cache
def programs(model):
    """(reads a prompt of at most S tokens, one step behind it)."""

    def read(params, tokens_BS, mask_BS):
        logits_BV = None
        if hasattr(model, "prefill"):
            logits_BV, *encoded = model.prefill(params, tokens_BS, mask_BS)
        else:
            encoded = model.encode(params, tokens_BS, mask_BS)
        weights = model.decoder_params(params)
        return logits_BV, weights, model.start_decoding(weights, *encoded, max_length=S)

    return jax.jit(read), jax.jit(model.decode_step)


def step_by_step(model, params, prompt, target, openers=0):
    """Log-probability of the target by a prefill of the prompt and a decoding step for each token behind it."""
    read, step = programs(model)
    given, fed = prompt[: len(prompt) - openers], [*prompt[len(prompt) - openers :], *target[:-1]]
    logits_BV, weights, cache = read(params, *converters.pad([np.asarray(given)], S, 0))
    logits = [] if logits_BV is None else [logits_BV[0]]
    fed = [model.config.decoder_start_token_id, *fed] if logits_BV is None else fed
    for position, token in enumerate(fed):
        logits_BKV, cache = step(weights, cache, np.asarray([[token]]), position)
        logits.append(logits_BKV[0, 0])
    return sum_of(logits[-len(target) :], target)


def sum_of(logits_TV, target):
    log_probs_TV = np.asarray(jax.nn.log_softmax(np.stack(logits_TV), axis=-1), np.float64)
    return sum(log_probs_TV[t, token] for t, token in enumerate(target))


@pytest.mark.parametrize("kind", ["causal", "prefix", "t5"])
def test_a_score_is_the_sum_over_decoding_step_by_step(kind, vocabulary):
    model, params = made(kind, vocabulary.size)
    pairs = [(list(range(1, 20)), [30]), (list(range(40, 45)), list(range(60, 70))), ([7], [8, 9, 10])]
    scores_B, _ = Scorer(model, vocabulary)(params, pairs)
    for pair, score in zip(pairs, scores_B, strict=True):
        assert score == pytest.approx(step_by_step(model, params, *pair), rel=1e-5)


@pytest.mark.parametrize("form", ["infill", "middle"])
def test_a_hole_costs_what_training_and_decoding_say(form, vocabulary):
    model, params = made("prefix", vocabulary.size)
    hole = intrinsic.Hole(0, "x = [", "1, 2", "]\n")
    parts = [vocabulary.encode(text) for text in (hole.prefix, hole.middle, hole.suffix)]
    asked = {"form": form, "max_context": 40}
    nats = intrinsic.in_holes(model, params, [hole], vocabulary, **asked, batch_size=4).nats[0]
    alone = intrinsic.in_holes(model, params, [hole], vocabulary, **asked, ended=False, batch_size=4).nats[0]

    piece = Piece(np.concatenate(parts).astype(np.int32), True)
    corrupt = SpanCorruption(max_spans=1, min_file_tokens=1)
    corrupt = corrupt if form == "infill" else PrefixSuffixMiddle(fim_rate=1.0, cut="token")
    request = infill.request_of(vocabulary, (hole.prefix, hole.suffix), "spans" if form == "infill" else "middle")
    prompt, target = [*request.ids, *request.openers], [*parts[1], vocabulary.eom_id]
    for seed in range(2000):  # until training cuts where the hole is
        rng = np.random.default_rng(seed)
        (record,) = PrefixLM(objective=corrupt).apply([piece], [1], rng, vocabulary)
        if record.tokens[: len(prompt)].tolist() == prompt:
            break
    assert record.tokens[len(prompt) : -1].tolist() == target
    tokens_1T, valid_1T = converters.pad([record.tokens], 2 * S, 0)
    place_1T = np.arange(2 * S, dtype=np.int32)[None]
    batch = {"tokens_BT": tokens_1T, "positions_BT": place_1T, "segments_BT": valid_1T.astype(np.int32)}
    logits_TV = jax.jit(model.logits)(params, batch | {"bidirectional_BT": place_1T < record.bidirectional})[0]
    behind = slice(len(prompt) - 1, len(prompt) - 1 + len(target))
    assert nats == pytest.approx(-sum_of(logits_TV[behind], target), rel=1e-5)
    assert nats == pytest.approx(-step_by_step(model, params, prompt, target, len(request.openers)), rel=1e-5)
    assert alone == pytest.approx(-step_by_step(model, params, prompt, target[:-1], len(request.openers)), rel=1e-5)


def test_what_a_prefix_lm_writes_is_exact(vocabulary):
    """The greedy continuation of a text, found by the same search; only letters may be written."""
    model, params = made("prefix", vocabulary.size)
    letters = np.isin(np.arange(vocabulary.size), vocabulary.encode("abcdefghijklmnopqrstuvwxyz"))
    params = {**params, "head_bias": np.where(letters, 0.0, -1e4).astype(np.float32)}
    texts = ["def f", "x = 1; y", "while q", "while q"]
    prompts = [[vocabulary.eos_id, *vocabulary.encode(text)] for text in texts]
    settings = Generation(temperature=0.0, max_new_tokens=6, batch_size=4)
    written = [found[0].text for found in complete(model, params, vocabulary, prompts, settings)]
    written[3] = "no" + written[3]
    examples = [intrinsic.Hole(n, text, more, "") for n, (text, more) in enumerate(zip(texts, written, strict=True))]
    asked = {"form": "left_to_right", "max_context": 32, "generated": 4, "batch_size": 4}
    assert intrinsic.in_holes(model, params, examples, vocabulary, **asked).exact.tolist() == [1, 1, 1, 0]


def test_a_small_context_loses_the_beginning_of_a_prompt_and_keeps_every_answer(tmp_path, vocabulary):
    """Answers of unequal length stand in one batch, and padding takes no position that the model does not have."""
    model, params = made("causal", vocabulary.size)
    huggingface.save(tmp_path, model.config, params, "float32")
    byte_vocabulary(tmp_path)
    subject = Subject("toy", ModelSource(init_from=str(tmp_path)).load())
    words = [f"{'once upon a time ' * n}end{'ing' * (n % 4 * 3)}" for n in range(1, 9)]
    (tmp_path / "lambada_test_plain_text.txt").write_text("\n".join(words) + "\n")
    rows = [{"goal": "to go " * n, "sol1": "walk", "sol2": "run " * (1 + n % 5 * 3)} for n in range(1, 9)]
    (tmp_path / "valid.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "valid-labels.lst").write_text("0\n" * 8)
    tracker = Tracker(tmp_path, quiet=True)
    call = Call(directory=tmp_path / "out", subject=subject, step="all", tracker=tracker, workers=1)
    LastWords(directory=str(tmp_path)).run(call)
    Choices(benchmark="piqa", directory=str(tmp_path), batch_size=32).run(call)

    # A model of more positions scores what was left of them, one beside the other.
    scorer, wide = Scorer(model, vocabulary), made("causal", vocabulary.size, 128)[0]
    by_id = {row["task_id"]: row for row in records.read(tmp_path / "out/lambada/answers.jsonl")}
    found = [by_id[id]["log_probability"] for id, _, _ in files.lambada(str(tmp_path), "test")]
    pairs = [scorer.fitted(scorer.pair(*head_and_last)) for _, *head_and_last in files.lambada(str(tmp_path), "test")]
    assert max(len(prompt) + len(target) for prompt, target in pairs) == 63
    np.testing.assert_allclose(found, Scorer(wide, vocabulary)(params, pairs)[0], rtol=1e-5)
    rows = records.read(tmp_path / "out/piqa/answers.jsonl")
    assert len(rows) == 8 and np.isfinite([row["log_probabilities"] for row in rows]).all()


def test_a_start_token_stays_and_an_answer_that_is_too_long_is_refused(vocabulary):
    class Started:
        bos_id, eos_id = 1, 2

    model, _ = made("causal", vocabulary.size)
    assert Scorer(model, Started()).fitted(((1, *range(100)), (5, 6))) == ((1, *range(40, 100)), (5, 6))
    scorer = Scorer(model, vocabulary)
    assert scorer.fitted(((1, *range(100)), (5, 6)))[0] == tuple(range(39, 100))
    assert scorer.fitted(((1, 2, 3), (9,) * 64))[0] == (3,)
    with pytest.raises(UserError, match="an answer of 65 tokens exceeds the model's 64 positions"):
        scorer.fitted(((1, 2), (9,) * 65))
