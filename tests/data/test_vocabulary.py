import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codegen2_jax.data.vocabulary import Vocabulary, train_vocabulary
from codegen2_jax.errors import UserError

TOKENIZERS = Path(__file__).parents[3] / "shared" / "data" / "tokenizers"

CORPUS = [Path(module.__file__).read_text(encoding="utf-8") for module in (json, json.decoder, json.encoder)]


def official(name):
    directory = TOKENIZERS / name
    if not directory.is_dir():
        pytest.skip(f"the official tokenizer files are not at {directory}")
    return Vocabulary.from_directory(directory)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("vocabulary")
    train_vocabulary(CORPUS, 600, 20, directory)
    return directory


def test_codet5_vector():
    # The ids that CodeT5's released tokenizer gives.
    ids = official("codet5").encode("def add(a, b):\n    return a + b")
    assert ids == [536, 527, 12, 69, 16, 324, 4672, 203, 565, 327, 279, 397, 324]


def test_codet5_layout():
    vocabulary = official("codet5")
    assert (vocabulary.pad_id, vocabulary.bos_id, vocabulary.eos_id) == (0, 1, 2)
    assert (vocabulary.unk_id, vocabulary.mask_id) == (3, 4)
    assert (vocabulary.size, vocabulary.num_sentinels) == (32_100, 100)
    assert (vocabulary.sentinel_id(0), vocabulary.sentinel_id(99)) == (32_099, 32_000)
    assert vocabulary.text_ids == (5, 32_000)


def test_gpt2_has_one_special_token_and_no_sentinels():
    vocabulary = official("gpt2")
    assert (vocabulary.size, vocabulary.num_sentinels) == (50_257, 0)
    assert {vocabulary.pad_id, vocabulary.bos_id, vocabulary.eos_id, vocabulary.unk_id} == {50_256}
    assert vocabulary.encode("!") == [0] and vocabulary.text_ids == (0, 50_256)
    with pytest.raises(UserError, match="the vocabulary has 0"):
        vocabulary.sentinel_id(0)


@pytest.mark.parametrize("name", ["gpt2", "codet5"])
def test_official_files_round_trip(name):
    vocabulary = official(name)
    for text in (*CORPUS, "\t\r\n  \x00\u00e9 \u4e2d \U0001f600", "<s><pad><mask><extra_id_0><|endoftext|>"):
        assert vocabulary.decode(vocabulary.encode(text)) == text


@given(text=st.text())
@settings(max_examples=200, deadline=None)
def test_every_text_comes_back_and_holds_no_control_token(directory, text):
    vocabulary = Vocabulary.from_directory(directory)
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == text.replace("</s>", "")
    controls = {vocabulary.pad_id, vocabulary.bos_id, vocabulary.eos_id, vocabulary.mask_id, *vocabulary.sentinel_ids}
    assert controls.isdisjoint(ids)


def test_literal_end_token_becomes_unknown(directory):
    vocabulary = Vocabulary.from_directory(directory)
    assert vocabulary.encode("a</s>b") == [*vocabulary.encode("a"), vocabulary.unk_id, *vocabulary.encode("b")]
    assert vocabulary.encode("</s></s>") == [vocabulary.unk_id] * 2


def test_batches_encode_as_single_texts(directory):
    vocabulary = Vocabulary.from_directory(directory)
    texts = ["def f(x):", "", "a</s>", "  return\n"]
    assert vocabulary.encode_batch(texts) == [vocabulary.encode(text) for text in texts]


def test_decoding_drops_what_has_no_text(directory):
    vocabulary = Vocabulary.from_directory(directory)
    ids = [vocabulary.bos_id, *vocabulary.encode("def  f ( x ) :"), vocabulary.sentinel_id(0), vocabulary.eos_id]
    assert vocabulary.decode([*ids, vocabulary.size + 3, vocabulary.pad_id]) == "def  f ( x ) :"


def test_trained_layout_and_determinism(directory, tmp_path):
    vocabulary = Vocabulary.from_directory(directory)
    assert (vocabulary.size, vocabulary.num_sentinels) == (600, 20)
    assert (vocabulary.sentinel_id(0), vocabulary.sentinel_id(19)) == (599, 580)
    entries = json.loads((directory / "vocab.json").read_text(encoding="utf-8"))
    assert sorted(entries.values()) == list(range(600)) and entries["<extra_id_3>"] == 596
    assert train_vocabulary(CORPUS, 600, 20, tmp_path) == vocabulary
    assert train_vocabulary(CORPUS, 599, 20, tmp_path) != vocabulary


def test_transformers_reads_what_was_trained(directory):
    transformers = pytest.importorskip("transformers")
    theirs, ours = transformers.AutoTokenizer.from_pretrained(directory), Vocabulary.from_directory(directory)
    assert len(theirs) == ours.size
    assert theirs.convert_tokens_to_ids(["<extra_id_0>", "<mask>", "</s>"]) == [ours.size - 1, ours.mask_id, 2]
    for text in (CORPUS[0], "x = [1,  2]\n\ty\u00e9"):
        assert theirs(text).input_ids == [ours.bos_id, *ours.encode(text), ours.eos_id]


def test_tokenizer_json_equals_the_two_files(directory, tmp_path):
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.BPE.from_file(str(directory / "vocab.json"), str(directory / "merges.txt")))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 1))
    tokenizer.add_special_tokens([AddedToken(token) for token in ("<pad>", "<s>", "</s>", "<unk>", "<mask>")])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    one, other = Vocabulary.from_directory(tmp_path), Vocabulary.from_directory(directory)
    for text in (CORPUS[0], "<s>x</s>"):
        assert one.encode(text) == other.encode(text)
    assert (one.size, one.eos_id, one.sentinel_ids) == (other.size, other.eos_id, other.sentinel_ids)


def test_errors_name_the_limit_and_the_remedy(directory, tmp_path):
    with pytest.raises(UserError, match="holds 0 .*vocab.json and 0 .*merges.txt"):
        Vocabulary.from_directory(tmp_path)
    with pytest.raises(UserError, match="size=270 is below 281"):
        train_vocabulary(CORPUS, 270, 20, tmp_path)
    with pytest.raises(UserError, match="size=5000 was asked for"):
        train_vocabulary(["too little text"], 5000, 20, tmp_path)
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    entries = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    entries["<extra_id_0>"], entries["<extra_id_1>"] = entries["<extra_id_1>"], entries["<extra_id_0>"]
    (tmp_path / "vocab.json").write_text(json.dumps(entries), encoding="utf-8")
    with pytest.raises(UserError, match="<extra_id_1> has id 599, expected 598"):
        Vocabulary.from_directory(tmp_path)


def test_digest_follows_the_contents(directory, tmp_path):
    for file in directory.iterdir():
        (tmp_path / f"other-{file.name}").write_bytes(file.read_bytes())
    assert Vocabulary.from_directory(tmp_path) == Vocabulary.from_directory(directory)
    merges = tmp_path / "other-merges.txt"
    merges.write_text(merges.read_text(encoding="utf-8").rsplit("\n", 2)[0] + "\n", encoding="utf-8")
    assert Vocabulary.from_directory(tmp_path) != Vocabulary.from_directory(directory)
