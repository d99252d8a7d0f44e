"""Infilling: the prompt's format, several holes, what ends an answer, and the same in a prefix-LM."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_decoders
from toy_decoders import Script, byte_vocabulary

from codegen2_jax.data import decoder_vocabularies
from codegen2_jax.data.span_records import infill_prompt, middle_prompt, restore
from codegen2_jax.decoding.infill import infill, parse_template, request_of
from codegen2_jax.decoding.settings import Generation
from codegen2_jax.errors import UserError
from codegen2_jax.models.codegen import CodeGenConfig
from codegen2_jax.models.decoder_only import DecoderOnly


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return byte_vocabulary(tmp_path_factory.mktemp("bytes"))


def test_the_prompt_of_codegen2(tmp_path):
    """The vector of the specification; encoding the parts alone gives the ids of the template."""
    from pathlib import Path

    files = Path(__file__).parents[3] / "shared" / "data" / "tokenizers" / "gpt2"
    if not files.is_dir():
        pytest.skip("shared/data/tokenizers is not there")
    vocabulary = decoder_vocabularies.write_codegen_vocabulary(files, tmp_path)
    request = request_of(vocabulary, ("prefix", "suffix"))
    assert request.ids == (40290, 51199, 37333, 844, 50256, 50299) and request.openers == (51199,)
    parts = ("def hello_world():\n    ", "    return name")
    template = f"{parts[0]}<mask_1>{parts[1]}<|endoftext|><sep>"
    assert list(request_of(vocabulary, parts).ids) == vocabulary.encode_template(template)


@pytest.mark.parametrize("parts", [("a = ", "\n"), ("", ""), ("x", " <mask_1> <sep> ", "<|endoftext|>")])
def test_the_prompt_is_the_one_of_training(vocabulary, parts):
    request = request_of(vocabulary, parts)
    assert [*request.ids, request.openers[0]] == infill_prompt(vocabulary, parts).tolist()
    assert request.openers == tuple(vocabulary.sentinel_id(k) for k in range(len(parts) - 1))


def holes(vocabulary):
    """Parts, what the script says behind each mask, and what must come of it: answers, closed, finish."""
    eom, eos, mask = [vocabulary.eom_id], [vocabulary.eos_id], [vocabulary.sentinel_id(2)]
    encode, long = vocabulary.encode, "long " * 12  # over the border of a chunk
    return [
        (("a(", ")"), [encode("one") + eom], ("one",), (True,), "stop_id"),
        (("b(", ",", ")"), [encode(long) + eom, encode("two\n\n") + eom], (long, "two\n\n"), (True, True), "stop_id"),
        (("c", "", "", ""), [eom, encode("\u00e9") + eom, eom], ("", "\u00e9", ""), (True,) * 3, "stop_id"),
        (("d", "", ""), [encode("done") + eos, encode("unseen") + eom], ("done", ""), (False, False), "stop_id"),
        (("e", "", ""), [encode("x") + eom, encode("y") + eos], ("x", "y"), (True, False), "stop_id"),
        (("f", "."), [encode("<mask_1><eom>") + mask + encode("z") + eom], ("<mask_1><eom>z",), (True,), "stop_id"),
        (("g", "", ""), [encode("abc") + eom, encode("h" * 200)], ("abc", "h" * 96), (True, False), "length"),
        (("h", "", ""), [encode("i" * 99) + eom, encode("unseen")], ("i" * 99, ""), (True, False), "length"),
        (("j", ""), [encode("j" * 98 + "\u00e9")[:100]], ("j" * 98 + "\u00e9",), (False,), "length"),
        (("k", ""), [encode("k" * 99 + "\u00e9")], ("k" * 99,), (False,), "length"),
    ]


def test_holes_are_filled_one_after_the_other(vocabulary):
    """All in one batch, rows with one to three holes; no answer shows a sentinel, and nothing else ends one."""
    cases = holes(vocabulary)
    lines = {vocabulary.encode(parts[0])[0]: [[vocabulary.eos_id], *said] for parts, said, *_ in cases}
    sentinels = tuple(vocabulary.sentinel_id(k) for k in range(2 + 1))
    model, params = Script(sentinels, vocabulary.size), toy_decoders.script(lines, rest=vocabulary.encode("?")[0])
    # A sentinel that the model says by itself is fed like any token, and this script takes it for the third question.
    f = vocabulary.encode("f")[0]
    said = lines[f][1]
    at = said.index(vocabulary.sentinel_id(2)) + 1
    params["script_RJT"] = params["script_RJT"].at[f, 3, : len(said) - at].set(jnp.asarray(said[at:]))
    settings = Generation(temperature=0.0, max_new_tokens=100)
    found = infill(model, params, vocabulary, [parts for parts, *_ in cases], settings)
    for (parts, _, answers, closed, finish), (one,) in zip(cases, found, strict=True):
        assert (one.answers, one.closed, one.finish) == (answers, closed, finish), parts
        assert one.text == parts[0] + "".join(a + p for a, p in zip(answers, parts[1:], strict=True))
        assert one.log_probability == pytest.approx(0.0, abs=1e-3)  # the script is all but certain


def test_an_answer_is_that_of_the_record_it_makes(vocabulary):
    """The sum of log-probabilities is the one of a single pass over prompt and answers of a prefix-LM: what goes both
    ways ends with <sep>, and the first mask is causal."""
    ids = {f"{name}_token_id": vocabulary.eos_id for name in ("bos", "eos", "pad")}
    ids["decoder_start_token_id"] = vocabulary.sep_id
    sizes = {"d_model": 32, "d_ff": 64, "num_layers": 1, "num_heads": 4, "head_dim": 8, "rotary_dim": 4}
    model = DecoderOnly(CodeGenConfig(vocab_size=vocabulary.size, prefix_lm=True, **sizes, **ids))
    params = jax.jit(model.init_params)(jax.random.key(2))
    possible = np.asarray([*vocabulary.encode("abcdefgh"), vocabulary.eom_id])  # readable texts, and an end
    params["head_bias"] = params["head_bias"].at[possible].add(20.0)
    parts = ("def f(x):\n    y = ", "\n    z = ", "\n    return z\n")
    settings = Generation(n=4, temperature=1.0, top_p=1.0, max_new_tokens=60)
    (samples,) = infill(model, params, vocabulary, [parts], settings)
    closed = [sample for sample in samples if all(sample.closed)]
    assert closed, "no sample fills both holes"
    for sample in closed[:2]:
        answers = [vocabulary.encode(answer) for answer in sample.answers]
        request = request_of(vocabulary, parts)
        tokens, drawn = list(request.ids), [False] * len(request.ids)
        for opener, answer in zip(request.openers, answers, strict=True):
            tokens += [opener, *answer, vocabulary.eom_id]
            drawn += [False, *[True] * (len(answer) + 1)]
        np.testing.assert_array_equal(restore(tokens, vocabulary), vocabulary.encode(sample.text))
        tokens_1T, context = np.asarray([tokens]), len(request.ids)
        batch = {"tokens_BT": tokens_1T, "positions_BT": np.arange(len(tokens))[None]}
        batch |= {"segments_BT": np.ones_like(tokens_1T), "bidirectional_BT": batch["positions_BT"] < context}
        log_probs_TV = np.asarray(jax.nn.log_softmax(jax.jit(model.logits)(params, batch)[0], axis=-1))
        expected = sum(log_probs_TV[at - 1, token] for at, token in enumerate(tokens) if drawn[at])
        assert sample.log_probability == pytest.approx(expected, rel=1e-4)


def test_the_form_of_prefix_suffix_middle(vocabulary):
    parts = ("a(", ")")
    request = request_of(vocabulary, parts, "middle")
    assert list(request.ids) == middle_prompt(vocabulary, *parts).tolist() and request.openers == ()
    lines = {vocabulary.fim_prefix_id: [[*vocabulary.encode("one"), vocabulary.eom_id]]}
    model, params = Script((0,), vocabulary.size), toy_decoders.script(lines, rest=vocabulary.encode("?")[0])
    ((found,),) = infill(model, params, vocabulary, [parts], form="middle")
    assert (found.text, found.answers, found.closed) == ("a(one)", ("one",), (True,))
    with pytest.raises(UserError, match="2 holes"):
        request_of(vocabulary, ("a", "b", "c"), "middle")


@pytest.mark.parametrize(
    "text, parts",
    [
        ("a = <mask_1>\n", ("a = ", "\n")),
        ("<mask_1>", ("", "")),
        ("f(<mask_1>, <mask_2>) # <mask>", ("f(", ", ", ") # <mask>")),
    ],
)
def test_holes_of_a_template(text, parts):
    assert parse_template(text) == parts


@pytest.mark.parametrize(
    "text, message",
    [
        ("no hole", "has no <mask_1>"),
        ("<mask_2>", "the holes <mask_2> are not numbered"),
        ("<mask_1> <mask_1>", "<mask_1>, <mask_1> are not numbered"),
        ("<mask_2><mask_1>", "--prefix and --suffix"),
    ],
)
def test_templates_that_are_none(text, message):
    with pytest.raises(UserError, match=message):
        parse_template(text)


def test_what_cannot_infill_says_so(vocabulary, tmp_path):
    from codegen2_jax.data.vocabulary import Vocabulary
    from codegen2_jax.interop.huggingface import resolve_directory

    with pytest.raises(UserError, match="no sep_id, eom_id"):
        request_of(Vocabulary.from_directory(resolve_directory("nano_t5")), ("a", "b"))
    with pytest.raises(UserError, match="sentinel 8 asked for, the vocabulary has 8"):
        request_of(vocabulary, ("a",) * 10)
    with pytest.raises(UserError, match="without a hole"):
        request_of(vocabulary, ("a",))
    model = Script((0,), vocabulary.size)
    with pytest.raises(UserError, match="an infilled answer ends with <eom> only"):
        infill(model, {}, vocabulary, [("a", "b")], Generation(stop=("x",)))
    with pytest.raises(UserError, match="num_beams=2 is for text prompts"):
        infill(model, {}, vocabulary, [("a", "b")], Generation(num_beams=2, temperature=0.0))
