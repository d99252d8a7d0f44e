"""Prompts as texts to completions: what decides a sample, where it ends, beams, and settings that make no sense."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_decoders
from toy_decoders import Script, Table, byte_vocabulary

from codegen2_jax.decoding import beams, sampling
from codegen2_jax.decoding.generate import generate
from codegen2_jax.decoding.settings import Generation
from codegen2_jax.decoding.text import complete
from codegen2_jax.errors import UserError
from codegen2_jax.models.language_models import EncoderDecoder
from codegen2_jax.models.t5 import T5Config


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return byte_vocabulary(tmp_path_factory.mktemp("bytes"))


def table(vocabulary, seed=0):
    table_HV = np.random.default_rng(seed).normal(size=(997, vocabulary.size)) * 2
    table_HV[:, vocabulary.eos_id] += 3.0
    return {"table_HV": jnp.asarray(table_HV, jnp.float32)}


PROMPTS = ["def f(x):\n", "", "import os\n" * 9, "x", "for i in range(10):\n    pass\n", "x"]


def same(found, expected):
    """Whether completions are the same; their log-probabilities may differ by rounding, as batches do."""
    flat = [[one for samples in of_all for one in samples] for of_all in (found, expected)]
    texts = [[(one.text, one.ids, one.finish, one.stop_id) for one in samples] for samples in flat]
    scores = [[one.log_probability for one in samples] for samples in flat]
    return texts[0] == texts[1] and scores[0] == pytest.approx(scores[1], rel=1e-5)


def test_a_sample_depends_on_the_seed_its_prompt_and_its_number_only(vocabulary):
    params, options = table(vocabulary), {"temperature": 0.9, "max_new_tokens": 40}
    calls = []
    many = Generation(n=18, batch_size=64, **options)  # more than share a cache at once
    found = complete(Table(), params, vocabulary, PROMPTS, many, progress=lambda *done: calls.append(done))
    assert [len(samples) for samples in found] == [18] * 6 and calls[-1] == (108, 108) and calls == sorted(calls)
    few = complete(Table(), params, vocabulary, PROMPTS, Generation(n=2, batch_size=3, **options))
    assert same(few, [samples[:2] for samples in found])
    ids = [vocabulary.encode(prompt) for prompt in PROMPTS[:3]]
    ids[1] = [vocabulary.bos_id]  # what a prompt without text is
    assert same(complete(Table(), params, vocabulary, ids, Generation(n=2, batch_size=3, **options)), few[:3])
    other = complete(Table(), params, vocabulary, ids, Generation(n=2, batch_size=3, seed=1, **options))
    assert not same(other, few[:3])
    assert PROMPTS[3] == PROMPTS[5] and found[3] != found[5]
    everything = [sample for samples in found for sample in samples]
    assert len({sample.ids for sample in everything}) > 95  # some are empty
    assert {sample.finish for sample in everything} == {"stop_id", "length"}
    for prompt, samples in zip(PROMPTS[:1] + PROMPTS[2:], found[:1] + found[2:], strict=True):
        for sample in samples[:3]:
            tokens = [*sample.ids, *([vocabulary.eos_id] if sample.finish == "stop_id" else [])]
            expected = Table.log_probability(params, vocabulary.encode(prompt), tokens)
            assert sample.log_probability == pytest.approx(expected, rel=1e-4)
            assert len(tokens) == 40 or sample.stop_id == vocabulary.eos_id
            assert sample.text == vocabulary.decode(sample.ids).rstrip("\ufffd")


@pytest.mark.parametrize("num_beams", [1, 2])
def test_weights_that_were_laid_out_before_are_not_laid_out_again(vocabulary, num_beams, monkeypatch):
    params, options = table(vocabulary), Generation(num_beams=num_beams, temperature=0.0, max_new_tokens=10)
    decoder = sampling.lay_out(Table(), params)
    expected = complete(Table(), params, vocabulary, PROMPTS[:2], options)
    monkeypatch.setattr(sampling, "lay_out", None)
    assert same(complete(Table(), params, vocabulary, PROMPTS[:2], options, decoder=decoder), expected)


def test_stop_strings_end_samples_across_the_borders_of_chunks(vocabulary):
    """The script puts END around positions 32 and 33, the first of a chunk, and what comes behind is never shown."""
    lines, texts = {}, {}
    for first, before in zip("abcd", (29, 30, 31, 80), strict=True):
        text = "." * before + "END never" + "\u00e9" * 30
        texts[first] = "." * before
        lines[vocabulary.encode(first)[0]] = [vocabulary.encode(text)]
    lines[vocabulary.encode("e")[0]] = [vocabulary.encode("E" * 40 + "EN")]
    texts["e"] = "E" * 40 + "EN"
    model, params = Script((0,), vocabulary.size), toy_decoders.script(lines, rest=vocabulary.eos_id)
    shown = {}
    settings = Generation(temperature=0.0, max_new_tokens=100, stop=("END", "\n\n"))
    on_text = lambda prompt, sample, text: shown.setdefault((prompt, sample), []).append(text)  # noqa: E731
    found = complete(model, params, vocabulary, list("abcde"), settings, on_text=on_text)
    assert [samples[0].text for samples in found] == list(texts.values())
    assert [samples[0].finish for samples in found] == ["stop_string"] * 4 + ["stop_id"]
    assert ["".join(shown[prompt, 0]) for prompt in range(5)] == list(texts.values())
    assert len(shown[3, 0]) > 1, "nothing was shown on the way"


def test_beams_behind_a_prompt_find_the_best_of_all_sequences():
    """With room for every prefix and no length penalty, beam search is exhaustive."""
    V, length, eos = 4, 4, 2
    params = {"table_HV": jnp.asarray(np.random.default_rng(1).normal(size=(101, V)) * 2, jnp.float32)}
    prompts_BS, mask_BS = np.asarray([[3, 1, 1], [1, 0, 0]]), np.asarray([[1, 1, 1], [1, 0, 0]], bool)
    prefix = sampling.read(Table(), params, prompts_BS, mask_BS)
    options = {"num_beams": 64, "length_penalty": 0.0, "max_new_tokens": length, "eos_id": eos}
    token_BKT, log_prob_BK = beams.search(Table(), params, prefix, **options)
    for row, prompt in enumerate(([3, 1, 1], [1])):
        scores = {}
        for tokens in itertools.product(range(V), repeat=length):
            tokens = tokens[: tokens.index(eos) + 1] if eos in tokens else tokens
            scores[tokens] = Table.log_probability(params, prompt, tokens)
        ranked = sorted(scores, key=scores.get, reverse=True)
        for k in range(3):
            best = ranked[k] + (eos,) * (length - len(ranked[k]))
            assert tuple(np.asarray(token_BKT[row, k]).tolist()) == best
            assert float(log_prob_BK[row, k]) == pytest.approx(scores[ranked[k]], abs=1e-4)


def test_beam_search_of_texts_keeps_order_and_reports_what_it_found(vocabulary):
    params = table(vocabulary)
    settings = Generation(n=2, num_beams=3, temperature=0.0, max_new_tokens=12, batch_size=6)
    prompts = [PROMPTS[0], *PROMPTS[2:]]
    found = complete(Table(), params, vocabulary, prompts, settings)
    greedy = complete(Table(), params, vocabulary, prompts, Generation(temperature=0.0, max_new_tokens=12))
    for prompt, samples, (plain,) in zip(prompts, found, greedy, strict=True):
        assert len(samples) == 2 and samples[0].ids != samples[1].ids
        for sample in samples:
            tokens = [*sample.ids, *([vocabulary.eos_id] if sample.finish == "stop_id" else [])]
            expected = Table.log_probability(params, vocabulary.encode(prompt), tokens)
            assert sample.log_probability == pytest.approx(expected, rel=1e-4)
        per_token = [one.log_probability / (len(one.ids) + (one.finish == "stop_id")) for one in (*samples, plain)]
        assert per_token[0] >= max(per_token) - 1e-6


@pytest.mark.parametrize("num_beams", [1, 3])
def test_an_encoder_decoder_answers_as_generate_does(num_beams):
    from codegen2_jax.data.vocabulary import Vocabulary
    from codegen2_jax.interop.huggingface import resolve_directory

    vocabulary = Vocabulary.from_directory(resolve_directory("nano_t5"))
    sizes = {"d_model": 16, "d_ff": 32, "num_encoder_layers": 1, "num_decoder_layers": 1, "num_heads": 2, "head_dim": 8}
    model = EncoderDecoder(T5Config(vocab_size=vocabulary.size, **sizes))
    params = jax.jit(model.init_params)(jax.random.key(3))
    ids = [vocabulary.bos_id, *vocabulary.encode("return the sum"), vocabulary.eos_id]
    batch = {"inputs_BS": np.asarray([ids]), "inputs_mask_BS": np.ones((1, len(ids)), bool)}
    options = {"max_length": 13, "num_beams": num_beams}
    tokens_T = jax.jit(generate, static_argnums=0, static_argnames=options)(model, params, batch, **options)[0].tolist()
    settings = Generation(temperature=0.0, num_beams=num_beams, max_new_tokens=12)
    ((found,),) = complete(model, params, vocabulary, ["return the sum"], settings)
    ended = vocabulary.eos_id in tokens_T
    tokens_T = tokens_T[: tokens_T.index(vocabulary.eos_id)] if ended else tokens_T
    assert found.text == vocabulary.decode(tokens_T) and found.finish == ("stop_id" if ended else "length")


def test_a_prompt_that_is_too_long_names_the_remedy(vocabulary):
    model = Table()
    too_long = "y" * 2000
    with pytest.raises(UserError, match=r"prompt 2 has 2000 tokens.*2048 positions; cut it to 1948 tokens, or lower"):
        complete(model, table(vocabulary), vocabulary, ["x", too_long], Generation(max_new_tokens=100))
    with pytest.raises(UserError, match="prompt 1 has no tokens"):
        complete(model, table(vocabulary), vocabulary, [[]])
    with pytest.raises(UserError, match="a list of prompts"):
        complete(model, table(vocabulary), vocabulary, "one prompt")
    assert complete(model, table(vocabulary), vocabulary, []) == []


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"temperature": -0.1}, "temperature=-0.1"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_p": 0.0}, r"top_p=0.0.*\(0, 1\]"),
        ({"top_p": 1.01}, "top_p=1.01"),
        ({"top_k": -1}, "top_k=-1"),
        ({"n": 0}, "n=0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"stop": ("a", "")}, "stop="),
        ({"stop": "END"}, "stop='END' must be a tuple"),
        ({"seed": -1}, "seed=-1"),
        ({"num_beams": 2}, "num_beams=2 draws nothing; set temperature=0"),
        ({"temperature": 0.0, "n": 3}, "set n=1, or a temperature"),
        ({"temp": 0.5}, "temp is no setting of generation; did you mean temperature"),
        ({"frequency": 1}, "frequency is no setting"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_one_line(settings, message):
    with pytest.raises(UserError, match=message) as caught:
        Generation.of(settings)
    assert "\n" not in str(caught.value)
