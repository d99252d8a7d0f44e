"""Byte-level BPE vocabularies: CodeT5's and GPT-2's official files, and the ones this package trains.

Text never becomes a control token: the tokenizer that reads text knows no special tokens, and special ids are put in
by code. The one exception is CodeT5's own rule that a literal `</s>` in the text is the unknown token
(salesforce/CodeT5 `_utils.py`).
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from codegen2_jax.errors import UserError

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "<mask>")
"""CodeT5's five special tokens; their ids are 0 to 4."""

CODET5_SENTINELS = 100
"""CodeT5 adds 100 sentinels behind the 32,000 entries of its vocab.json, which does not list them."""


class Vocabulary:
    """A reversible map between text and ids.

    `sentinel_id(k)` counts down from the last id: `<extra_id_k>` is `size - 1 - k`. A vocabulary without one of the
    special tokens (GPT-2 has `<|endoftext|>` only) uses its end token in that place, so padding must always be told by
    lengths or masks and never by an id.
    """

    def __init__(self, tokenizer: Tokenizer, special: dict[str, int], num_sentinels: int, size: int, digest: str):
        self._tokenizer = tokenizer
        end = special.get("</s>", special.get("<|endoftext|>"))
        if end is None:
            raise UserError("the vocabulary has neither </s> nor <|endoftext|>; an end token is required.")
        self.eos_id = end
        self.pad_id = special.get("<pad>", end)
        self.bos_id = special.get("<s>", end)
        self.unk_id = special.get("<unk>", end)
        self.mask_id = special.get("<mask>", end)
        self.num_sentinels = num_sentinels
        self.size = size
        self.digest = digest
        self._replaces_end = "</s>" in special and "<unk>" in special
        self._without_text = frozenset(special.values()) | frozenset(range(size - num_sentinels, size))

    @classmethod
    def from_directory(cls, directory: str | Path) -> "Vocabulary":
        """Reads `tokenizer.json`, or one `*vocab.json` and one `*merges.txt`."""
        directory = Path(directory)
        if (directory / "tokenizer.json").is_file():
            return _from_tokenizer_json(directory / "tokenizer.json")
        pair = [sorted(directory.glob(pattern)) for pattern in ("*vocab.json", "*merges.txt")]
        if [len(files) for files in pair] != [1, 1]:
            raise UserError(
                f"{directory} holds {len(pair[0])} *vocab.json and {len(pair[1])} *merges.txt files; give a directory "
                f"with tokenizer.json or with exactly one of each."
            )
        return _from_bpe_files(pair[0][0], pair[1][0])

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, no special tokens added."""
        if self._replaces_end and "</s>" in text:
            ids = []
            for number, part in enumerate(text.split("</s>")):
                ids += [self.unk_id] if number else []
                ids += self._tokenizer.encode(part, add_special_tokens=False).ids
            return ids
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`[encode(text) for text in texts]`, on several threads."""
        encoded = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [
            self.encode(text) if self._replaces_end and "</s>" in text else encoding.ids
            for text, encoding in zip(texts, encoded, strict=True)
        ]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, spaces as they are; special tokens, sentinels and ids beyond the vocabulary have none.

        A model's table may be padded beyond the vocabulary, as T5's is, and may emit such an id.
        """
        kept = [i for i in map(int, ids) if 0 <= i < self.size and i not in self._without_text]
        return self._tokenizer.decode(kept, skip_special_tokens=False)

    def sentinel_id(self, k: int) -> int:
        """The id of `<extra_id_k>`."""
        if not 0 <= k < self.num_sentinels:
            raise UserError(f"sentinel {k} asked for, the vocabulary has {self.num_sentinels}; use fewer spans.")
        return self.size - 1 - k

    @cached_property
    def sentinel_ids(self) -> tuple[int, ...]:
        """All sentinels, `<extra_id_0>` first."""
        return tuple(self.size - 1 - k for k in range(self.num_sentinels))

    @property
    def text_ids(self) -> tuple[int, int]:
        """Half-open range of ids in which ordinary tokens lie (what a random replacement is drawn from)."""
        if self.pad_id == self.eos_id:  # GPT-2: <|endoftext|> stands behind the text
            return 0, self.eos_id
        return len(SPECIAL_TOKENS), self.size - self.num_sentinels

    def __eq__(self, other) -> bool:
        return isinstance(other, Vocabulary) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


def _digest(paths: Sequence[Path]) -> str:
    """sha256 of the files' contents, each led by its length so that no two lists of files look alike."""
    total = hashlib.sha256()
    for path in paths:
        content = path.read_bytes()
        total.update(f"{len(content)}|".encode() + content)
    return total.hexdigest()


def _byte_level(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _from_bpe_files(vocab_file: Path, merges_file: Path) -> Vocabulary:
    vocab = json.loads(vocab_file.read_text(encoding="utf-8"))
    tokenizer = _byte_level(models.BPE.from_file(str(vocab_file), str(merges_file)))
    special = {token: vocab[token] for token in (*SPECIAL_TOKENS, "<|endoftext|>") if token in vocab}
    size, num_sentinels = len(vocab), sum(token.startswith("<extra_id_") for token in vocab)
    if not num_sentinels and tuple(special) == SPECIAL_TOKENS:
        num_sentinels = CODET5_SENTINELS
        size += num_sentinels
    return _checked(tokenizer, special, num_sentinels, size, vocab, _digest([vocab_file, merges_file]))


def _from_tokenizer_json(path: Path) -> Vocabulary:
    content = json.loads(path.read_text(encoding="utf-8"))
    added = {token["content"]: token["id"] for token in content.get("added_tokens", ())}
    # Without these the library would turn the text "<s>" into the id of <s>, and wrap what it encodes.
    content["added_tokens"] = [token for token in content.get("added_tokens", ()) if not token["special"]]
    content["post_processor"] = None
    tokenizer = Tokenizer.from_str(json.dumps(content))
    vocab = {**tokenizer.get_vocab(with_added_tokens=True), **added}
    special = {token: vocab[token] for token in (*SPECIAL_TOKENS, "<|endoftext|>") if token in vocab}
    num_sentinels = sum(token.startswith("<extra_id_") for token in vocab)
    return _checked(tokenizer, special, num_sentinels, max(vocab.values()) + 1, vocab, _digest([path]))


def _checked(tokenizer, special, num_sentinels, size, vocab, digest) -> Vocabulary:
    for token, index in vocab.items():
        if token.startswith("<extra_id_") and index != size - 1 - int(token[len("<extra_id_") : -1]):
            raise UserError(
                f"{token} has id {index}, expected {size - 1 - int(token[10:-1])} (vocabulary size - 1 - k); "
                f"renumber the sentinels."
            )
    return Vocabulary(tokenizer, special, num_sentinels, size, digest)


def train_vocabulary(texts: Iterable[str], size: int, num_sentinels: int, directory: str | Path) -> Vocabulary:
    """Trains a byte-level BPE with CodeT5's layout and writes `vocab.json`, `merges.txt`, `tokenizer_config.json`.

    `size` counts everything: 5 special tokens, 256 bytes, merges and `num_sentinels`. transformers' AutoTokenizer and
    RobertaTokenizer read the directory too.
    """
    least = len(SPECIAL_TOKENS) + 256 + num_sentinels
    if size < least:
        raise UserError(f"size={size} is below {least} (5 special tokens, 256 bytes, {num_sentinels} sentinels).")
    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=size - num_sentinels,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    learned = tokenizer.get_vocab_size()
    if learned != size - num_sentinels:
        raise UserError(
            f"the texts give only {learned + num_sentinels} entries, size={size} was asked for; lower it or add text."
        )
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.model.save(str(directory))
    vocab = json.loads((directory / "vocab.json").read_text(encoding="utf-8"))
    vocab |= {f"<extra_id_{size - 1 - index}>": index for index in range(size - num_sentinels, size)}
    (directory / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    config = {
        "tokenizer_class": "RobertaTokenizer",
        "add_prefix_space": False,
        "bos_token": "<s>",
        "cls_token": "<s>",
        "eos_token": "</s>",
        "sep_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
        "additional_special_tokens": [f"<extra_id_{k}>" for k in range(num_sentinels)],
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    return Vocabulary.from_directory(directory)


def as_seqio(vocabulary: Vocabulary):
    """The same vocabulary as a `seqio.Vocabulary`; imports SeqIO and with it TensorFlow."""
    import numpy as np
    import seqio
    import tensorflow as tf

    class SeqioVocabulary(seqio.Vocabulary):
        """`encode_tf` takes a scalar or a vector of strings (the latter gives a ragged tensor)."""

        def __init__(self):
            super().__init__(extra_ids=vocabulary.num_sentinels)

        @property
        def bos_id(self):
            return vocabulary.bos_id

        @property
        def eos_id(self):
            return vocabulary.eos_id

        @property
        def unk_id(self):
            return vocabulary.unk_id

        @property
        def pad_id(self):
            return vocabulary.pad_id

        @property
        def _base_vocab_size(self):
            return vocabulary.size - vocabulary.num_sentinels

        def _encode(self, s):
            return vocabulary.encode(s)

        def _decode(self, ids):
            return vocabulary.decode(ids)

        def _encode_tf(self, s):
            def encode(texts):
                # One call of Python for all texts; bytes where s is a scalar inside tf.data.
                texts = [text.decode("utf-8") for text in np.asarray(texts, object).reshape(-1)]
                rows = vocabulary.encode_batch(texts)
                lengths = np.asarray([len(row) for row in rows], np.int64)
                return np.asarray([token for row in rows for token in row], np.int32), lengths

            tokens, lengths = tf.numpy_function(encode, [s], (tf.int32, tf.int64), stateful=False)
            tokens, lengths = tf.ensure_shape(tokens, [None]), tf.ensure_shape(lengths, [None])
            return tokens if s.shape.rank == 0 else tf.RaggedTensor.from_row_lengths(tokens, lengths)

        def _decode_tf(self, ids):
            def decode(values):
                return vocabulary.decode(values).encode("utf-8")

            return tf.ensure_shape(tf.numpy_function(decode, [ids], tf.string, stateful=False), [])

        def __eq__(self, other):
            return isinstance(other, seqio.Vocabulary) and getattr(other, "digest", None) == self.digest

        digest = vocabulary.digest

    return SeqioVocabulary()
