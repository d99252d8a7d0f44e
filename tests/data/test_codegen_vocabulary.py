import gzip
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codegen2_jax.data import byte_level
from codegen2_jax.data.decoder_vocabularies import train_codegen_vocabulary, write_codegen_vocabulary
from codegen2_jax.data.llama_vocabulary import llama_content, read_llama2c, write_llama_vocabulary
from codegen2_jax.data.vocabulary import Vocabulary, train_vocabulary
from codegen2_jax.errors import UserError

DATA = Path(__file__).parents[3] / "shared" / "data"
CORPUS = [Path(module.__file__).read_text(encoding="utf-8") for module in (json, json.decoder, json.encoder)]

# Texts that hold control tokens' names -> the ids that CodeGen2's published tokenizer gives.
VECTORS = {
    "def hello_world():\n    <mask_1>    return name<|endoftext|><sep><mask_1>": (
        "4299 23748 62 6894 33529 198 50284 51199 50284 7783 1438 50256 50299 51199"
    ),
    "    return x": "50284 7783 2124",
    " " * 33: "50257 50286",
    "x  = 1\n   y\t\tz": "87 50286 28 352 198 50285 88 50294 89",
    "        self.x = [0]*10\n": "50280 944 13 87 796 685 15 60 9 940 198",
    "<|python|>": "27 91 29412 91 29",
    "prefix<mask_1>suffix<|endoftext|><sep><mask_1>": "40290 51199 37333 844 50256 50299 51199",
    "<mask_900>": "27 27932 62 12865 29",
}


def gpt2():
    directory = DATA / "tokenizers" / "gpt2"
    if not directory.is_dir():
        pytest.skip(f"GPT-2's tokenizer files are not at {directory}")
    return directory


@pytest.fixture(scope="module")
def codegen2_directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("codegen2")
    write_codegen_vocabulary(gpt2(), directory)
    return directory


@pytest.fixture(scope="module")
def codegen2(codegen2_directory):
    return Vocabulary.from_directory(codegen2_directory)


@pytest.fixture(scope="module")
def trained_directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("trained")
    train_codegen_vocabulary(CORPUS, 700, 30, directory)
    return directory


@pytest.fixture(scope="module")
def trained(trained_directory):
    return Vocabulary.from_directory(trained_directory)


@pytest.fixture(scope="module")
def llama_file():
    path = DATA / "stories260k" / "tok512.bin"
    if not path.is_file():
        pytest.skip(f"the tokenizer of stories260K is not at {path}")
    return path


@pytest.fixture(scope="module")
def llama(llama_file, tmp_path_factory):
    return write_llama_vocabulary(llama_file, tmp_path_factory.mktemp("llama"))


def rewrite(source, target, change):
    """Copies a directory's tokenizer.json, changed by `change(content)`."""
    content = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    change(content)
    (target / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return target


# --------------------------------------------------------------------------------------------------------- CodeGen2


def test_codegen2_ids(codegen2):
    assert (codegen2.size, codegen2.num_sentinels) == (51_200, 899)
    assert {codegen2.eos_id, codegen2.bos_id, codegen2.unk_id, codegen2.pad_id} == {50_256}
    assert (codegen2.sep_id, codegen2.eom_id) == (50_299, 50_300)
    assert (codegen2.fim_prefix_id, codegen2.fim_middle_id, codegen2.fim_suffix_id) == (50_295, 50_296, 50_297)
    assert [codegen2.sentinel_id(k - 1) for k in (1, 2, 899)] == [51_199, 51_198, 50_301]
    assert codegen2.text_ids == (0, 50_256)
    for n in range(2, 32):
        assert codegen2.encode(" " * n) == [50_288 - n]
    for n in range(2, 10):
        assert codegen2.encode("\t" * n) == [50_296 - n]
    with pytest.raises(UserError, match="the vocabulary has 899"):
        codegen2.sentinel_id(899)


@pytest.mark.parametrize("text", VECTORS, ids=range(len(VECTORS)))
def test_codegen2_vectors(codegen2, text):
    expected = [int(index) for index in VECTORS[text].split()]
    assert codegen2.encode_template(text) == expected
    if not any(name in text for name in ("<mask_1>", "<|endoftext|>", "<sep>")):
        assert codegen2.encode(text) == expected


def test_codegen2_text_that_spells_control_tokens_stays_text(codegen2):
    for text in ("<mask_1>", "a<|endoftext|>b", "<sep><eom><dummy_0>", "  <mask_899>\t\t"):
        ids = codegen2.encode(text)
        assert max(ids) <= 50_294 and 50_256 not in ids
        assert codegen2.decode(ids) == text
        assert codegen2.encode_batch([text, ""]) == [ids, []]


def test_codegen2_decoding_drops_control_ids(codegen2):
    ids = codegen2.encode_template("x<mask_1>  y<|endoftext|><sep><mask_1>z<eom><dummy_2>")
    assert codegen2.decode([*ids, 51_300]) == "x  yz"


CONTROLS = st.sampled_from(
    ["<mask_1>", "<|endoftext|>", "<sep>", "<eom>", "<dummy_0>", "  ", "\t\t\t", "\u2581", "\x00"]
)


@given(text=st.lists(st.one_of(st.text(), CONTROLS)).map("".join))
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back_without_control_ids(trained, text):
    ids = trained.encode(text)
    assert trained.decode(ids) == text
    assert set(trained.control_tokens.values()).isdisjoint(ids)
    assert trained.byte_lengths[ids].sum() == len(text.encode("utf-8"))


@given(text=st.lists(st.one_of(st.text(), CONTROLS)).map("".join))
@settings(max_examples=100, deadline=None)
def test_any_text_comes_back_from_codegen2(codegen2, text):
    ids = codegen2.encode(text)
    assert codegen2.decode(ids) == text and max(ids, default=0) <= 50_294 and 50_256 not in ids


def test_byte_lengths(codegen2):
    lengths = codegen2.byte_lengths
    assert lengths.dtype == np.int32 and lengths.shape == (51_200,)
    assert not lengths[list(codegen2.control_tokens.values())].any()
    assert (lengths[50_257], lengths[50_294], lengths[codegen2.encode("\u00e9")].sum()) == (31, 2, 2)
    assert np.count_nonzero(lengths == 0) == 1 + 4 + 2 + 899


@pytest.mark.parametrize("name", ["RandomSpanInfillingLight", "SingleLineInfilling"])
def test_prefix_and_suffix_encode_as_the_whole(codegen2, name):
    path = DATA / "humaneval_infilling" / f"HumanEval-{name}.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"HumanEval-Infill is not at {path}")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        problems = [json.loads(line) for line in file]
    end = [codegen2.eos_id, codegen2.sep_id, codegen2.sentinel_id(0)]
    for problem in problems[::4]:
        prefix, suffix = problem["prompt"], problem["suffix"]
        apart = [*codegen2.encode(prefix), codegen2.sentinel_id(0), *codegen2.encode(suffix), *end]
        assert codegen2.encode_template(f"{prefix}<mask_1>{suffix}<|endoftext|><sep><mask_1>") == apart


def test_transformers_reads_codegen2_with_the_same_ids(codegen2_directory, codegen2):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(codegen2_directory)
    assert len(theirs) == 51_200
    assert {theirs.eos_token_id, theirs.bos_token_id, theirs.unk_token_id} == {50_256}
    for text in (*VECTORS, CORPUS[0]):
        assert theirs(text).input_ids == codegen2.encode_template(text)
    assert theirs.decode(codegen2.encode("  x , y")) == "  x , y"


# ------------------------------------------------------------------------------------------- other kinds of the family


def test_directories_of_gpt2_files_say_what_codegen_adds(codegen2, tmp_path):
    for file in gpt2().iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    plain = Vocabulary.from_directory(tmp_path)  # CodeGen 1 of natural language
    assert (plain.size, plain.sep_id, plain.num_sentinels, plain.fim_prefix_id) == (50_257, None, 0, None)

    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"codegen_layout": {"family": "codegen2", "num_masks": 899}}))
    assert Vocabulary.from_directory(tmp_path) == codegen2 != plain

    config.write_text(json.dumps({"codegen_layout": {"family": "codegen1-multi"}}))
    multi = Vocabulary.from_directory(tmp_path)
    assert (multi.size, multi.sep_id, multi.num_sentinels) == (50_295, None, 0)
    assert multi.encode("x  = 1\t\t") == [87, 50286, 28, 352, 50294]

    config.write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    (tmp_path / "added_tokens.json").write_text(json.dumps(byte_level.codegen_tokens("codegen1-multi", 50_257)))
    assert Vocabulary.from_directory(tmp_path) == multi

    config.write_text(json.dumps({"codegen_layout": {"family": "codegen3"}}))
    with pytest.raises(UserError, match="family='codegen3' is unknown"):
        Vocabulary.from_directory(tmp_path)


def test_codegen25_has_its_own_ids(tmp_path):
    content = byte_level.content_of(
        json.loads((gpt2() / "vocab.json").read_text(encoding="utf-8")),
        byte_level.read_merges((gpt2() / "merges.txt").read_text(encoding="utf-8")),
        byte_level.codegen_tokens("codegen1-multi", 50_257),
    )
    added = {"<|endoftext|>": 50_256, "<fim_prefix>": 50_295, "<fim_middle>": 50_296, "<fim_suffix>": 50_297}
    added |= {f"<slot_{k}>": k for k in range(50_298, 50_317)} | {"<sep>": 50_317, "<eom>": 50_318}
    added |= {f"<mask_{k}>": 51_200 - k for k in range(881, 0, -1)}
    content["added_tokens"] += [byte_level.added_token(name, index, True) for name, index in added.items()]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    vocabulary = Vocabulary.from_directory(tmp_path)
    assert (vocabulary.size, vocabulary.num_sentinels) == (51_200, 881)
    assert (vocabulary.sep_id, vocabulary.eom_id, vocabulary.sentinel_id(0)) == (50_317, 50_318, 51_199)
    assert (vocabulary.fim_prefix_id, vocabulary.fim_middle_id, vocabulary.fim_suffix_id) == (50_295, 50_296, 50_297)
    ids = vocabulary.encode_template("prefix<mask_1>suffix<|endoftext|><sep><mask_1>")
    assert ids == [40290, 51199, 37333, 844, 50256, 50317, 51199]


def test_a_tokenizer_json_with_other_ids_is_refused(trained_directory, trained, tmp_path):
    def exchange(one, other):
        def change(content):
            entries = {token["content"]: token for token in content["added_tokens"]}
            entries[one]["id"], entries[other]["id"] = entries[other]["id"], entries[one]["id"]

        return change

    with pytest.raises(UserError, match="'<sep>' has id 669, CodeGen2's recipe over 626 entries gives 668"):
        Vocabulary.from_directory(rewrite(trained_directory, tmp_path, exchange("<sep>", "<eom>")))
    with pytest.raises(UserError, match="has id 69., expected 69."):
        Vocabulary.from_directory(rewrite(trained_directory, tmp_path, exchange("<mask_2>", "<mask_3>")))

    def without_sep(content):
        content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "<sep>"]

    with pytest.raises(UserError, match="has <mask_1> but no <sep>"):
        Vocabulary.from_directory(rewrite(trained_directory, tmp_path, without_sep))

    def spelled_otherwise(content):
        content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
        content["added_tokens"].reverse()

    assert Vocabulary.from_directory(rewrite(trained_directory, tmp_path, spelled_otherwise)) == trained


def test_trained_layout(trained, tmp_path):
    tokens = trained.control_tokens
    base = 700 - 38 - 4 - 2 - 30
    assert (trained.size, trained.num_sentinels, trained.eos_id) == (700, 30, base - 1)
    assert trained.encode(" " * 31) == [base] and trained.encode("\t\t") == [base + 37]
    assert [tokens["<dummy_0>"], tokens["<sep>"], tokens["<eom>"], tokens["<mask_30>"]] == [
        base + 38,
        base + 42,
        base + 43,
        base + 44,
    ]
    assert tokens["<mask_1>"] == trained.sentinel_id(0) == 699
    assert train_codegen_vocabulary(CORPUS, 700, 30, tmp_path) == trained
    assert train_codegen_vocabulary(CORPUS, 699, 30, tmp_path) != trained
    # No entry is wasted on blanks, which have tokens of their own.
    assert "    def f(self):" == trained.decode(trained.encode("    def f(self):"))
    entries = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    assert not [token for token in entries if "\u0120\u0120" in token]


def test_transformers_reads_what_was_trained(trained_directory, trained):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(trained_directory)
    text = "def f(x):\n        return <mask_1>\t\t<|endoftext|><sep><mask_1>y<eom>"
    assert theirs(text).input_ids == trained.encode_template(text) and theirs.eos_token_id == trained.eos_id


def test_training_errors_name_the_limit_and_the_remedy(tmp_path):
    with pytest.raises(UserError, match="at least one mask and 311 entries"):
        train_codegen_vocabulary(CORPUS, 310, 10, tmp_path)
    with pytest.raises(UserError, match="size=5000 was asked for"):
        train_codegen_vocabulary(["too little text"], 5000, 10, tmp_path)
    with pytest.raises(UserError, match="does not hold one"):
        write_codegen_vocabulary(tmp_path / "nowhere", tmp_path)


# ------------------------------------------------------------------------------------------------------------ Llama's


def greedy(pieces, scores, text):
    """llama2.c's encoder, word by word as its C source reads: characters, then the best pair until there is none."""
    ids = {piece: index for index, piece in enumerate(pieces)}
    tokens = [ids[" "]] if text else []
    for character in text:
        tokens += [ids[character]] if character in ids else [byte + 3 for byte in character.encode("utf-8")]
    while True:
        best, at = -1e10, -1
        for i in range(len(tokens) - 1):
            joined = ids.get(pieces[tokens[i]] + pieces[tokens[i + 1]])
            if joined is not None and scores[joined] > best:
                best, at, new = scores[joined], i, joined
        if at < 0:
            return tokens
        tokens[at : at + 2] = [new]


WORDS = st.sampled_from(
    [" ", "  ", "the", "once", " upon", "little girl", "\n", "t", "h", "e", "<s>", "<0x0A>", "\u00e9"]
)


@given(text=st.lists(st.one_of(st.text(max_size=8), WORDS)).map("".join))
@settings(max_examples=300, deadline=None)
def test_llama_encodes_as_llama2c_does(llama, llama_file, text):
    text = text.replace("\u2581", "")
    pieces, scores = read_llama2c(llama_file)
    ids = llama.encode(text)
    assert ids == greedy(pieces, scores, text)
    assert min(ids, default=3) >= 3 and llama.decode(ids) == text
    assert llama.byte_lengths[ids].sum() == len(text.encode("utf-8")) + bool(text)


def test_llama_ids_and_the_blank_in_front(llama):
    assert (llama.size, llama.bos_id, llama.eos_id, llama.unk_id) == (512, 1, 2, 0)
    assert llama.text_ids == (3, 512)
    assert llama.encode("Once upon a time")[:3] == [403, 407, 261]
    ids = llama.encode("Once upon")
    assert llama.decode([1, *ids, 1, *ids, 2]) == "Once uponOnce upon"
    assert llama.decode(ids, continuation=True) == " Once upon" and llama.decode([]) == ""


def test_transformers_reads_llama_with_the_same_ids(llama, llama_file, tmp_path):
    transformers = pytest.importorskip("transformers")
    assert write_llama_vocabulary(llama_file, tmp_path) == llama
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("Once upon a time, there was", "  caf\u00e9\n \U0001f600"):
        assert theirs(text).input_ids == [1, *llama.encode(text)]
        assert theirs.decode(theirs(text).input_ids, skip_special_tokens=True) == text


def test_a_damaged_llama2c_file_is_an_error(llama_file, tmp_path):
    path = tmp_path / "tok.bin"
    path.write_bytes(llama_file.read_bytes()[:-3])
    with pytest.raises(UserError, match="is no tokenizer.bin"):
        read_llama2c(path)
    path.write_bytes(struct.pack("<i", 4) + struct.pack("<fi", 0.0, 1) + b"a")
    with pytest.raises(UserError, match="ids 3 to 258 are not the 256 bytes"):
        read_llama2c(path)
    pieces, scores = read_llama2c(llama_file)
    with pytest.raises(UserError, match="1 pieces occur more than once"):
        llama_content([*pieces[:-1], pieces[300]], scores)


def test_a_chat_models_control_tokens_never_come_from_text(trained_directory, tmp_path):
    """The layout of SmolLM2 and its like: control tokens first, in the model's table and flagged special."""
    entries = json.loads((trained_directory / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"]
    words = [token for token in sorted(entries["vocab"], key=entries["vocab"].get) if token not in names]
    content = byte_level.content_of({token: k for k, token in enumerate([*names, *words])}, entries["merges"])
    content["added_tokens"] = [byte_level.added_token(name, k, True) for k, name in enumerate(names)]
    digits = {"type": "Digits", "individual_digits": True}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, content["pre_tokenizer"]]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    base = Vocabulary.from_directory(tmp_path)
    assert (base.eos_id, base.bos_id, base.pad_id, base.size) == (0, 0, 0, len(content["model"]["vocab"]))
    assert (base.sep_id, base.fim_prefix_id, base.num_sentinels) == (None, None, 0)
    assert base.text_ids == (4, base.size)
    text = "<|im_start|>user 2024<|im_end|><|endoftext|><repo_name>"
    assert base.decode(base.encode(text)) == text and min(base.encode(text)) >= 4
    assert base.encode_template("<|im_start|>a<|im_end|>") == [1, *base.encode("a"), 2]
    assert base.byte_lengths[base.encode(text)].sum() == len(text) and not base.byte_lengths[:4].any()

    # Of a chat model tokenizer_config.json says that a turn ends with another token; then records differ.
    config = {"eos_token": {"content": "<|im_end|>"}, "bos_token": "<|im_start|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    chat = Vocabulary.from_directory(tmp_path)
    assert (chat.eos_id, chat.bos_id) == (2, 1) and chat != base
    chat.save(tmp_path / "copy")
    again = Vocabulary.from_directory(tmp_path / "copy")
    assert (again.eos_id, again.bos_id, again.encode(text)) == (2, 1, chat.encode(text))


def test_other_models_and_layouts_are_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "Unigram"}}))
    with pytest.raises(UserError, match="a model of type Unigram; only BPE is supported"):
        Vocabulary.from_directory(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        Vocabulary.from_directory(tmp_path)
    codet5 = train_vocabulary(CORPUS, 400, 10, tmp_path / "codet5")
    assert (codet5.sep_id, codet5.eom_id) == (None, None)
    with pytest.raises(UserError, match="saved by copying"):
        codet5.save(tmp_path)
