"""Vocabularies: CodeT5's and GPT-2's official files, CodeGen's and Llama's tokenizer.json, and the ones trained here.

Text never becomes a control token: the tokenizer that reads text knows no control tokens, and their ids are put in by
code (`encode_template` is the one way to read them from a text, for prompts that a program writes). The one exception
is CodeT5's own rule that a literal `</s>` in the text is the unknown token (salesforce/CodeT5 `_utils.py`).
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from codegen2_jax.data import byte_level
from codegen2_jax.errors import UserError

SPECIAL_TOKENS = byte_level.CODET5_TOKENS
"""CodeT5's five special tokens; their ids are 0 to 4."""

CODET5_SENTINELS = byte_level.CODET5_SENTINELS


class Vocabulary:
    """A reversible map between text and ids.

    `sentinel_id(k)` counts down from the last id: `<extra_id_k>`, or `<mask_{k + 1}>` of CodeGen2, is `size - 1 - k`. A
    vocabulary without one of the special tokens (GPT-2 has `<|endoftext|>` only) uses its end token in that place, so
    padding must always be told by lengths or masks and never by an id.

    Attributes:
      eos_id, bos_id, pad_id, unk_id, mask_id: ids, the end token's where there is none.
      sep_id, eom_id, fim_prefix_id, fim_middle_id, fim_suffix_id: ids, None where there is none. CodeGen2 lends its
        first three dummies to the last three, the slots that have these names in CodeGen2.5.
      control_tokens: {name: id} of the tokens that never come from text.
      digest: stands for the files; vocabularies with the same digest are equal.

    Args:
      content: what a tokenizer.json holds.
      roles: {"eos_token": name, "bos_token": name}, where the names' usual meaning is not to hold.
    """

    def __init__(self, content: Mapping, digest: str, roles: Mapping[str, str] | None = None):
        self._content, self._roles = content, dict(roles or {})
        tokens, controls = byte_level.tokens_of(content), byte_level.control_tokens(content)
        self.control_tokens = controls
        self.size = max(tokens.values()) + 1
        self.num_sentinels = byte_level.count_sentinels(tokens, self.size)
        if "<mask_1>" in tokens:
            byte_level.check_codegen(content, tokens, self.num_sentinels)
        usual = controls.get("</s>", controls.get(byte_level.END))
        end = controls.get(self._roles.get("eos_token", ""), usual)
        if end is None:
            raise UserError("the vocabulary has neither </s> nor <|endoftext|>; an end token is required.")
        self.eos_id = end
        self.bos_id = controls.get(self._roles.get("bos_token", ""), controls.get("<s>", end))
        self.pad_id, self.unk_id, self.mask_id = (controls.get(name, end) for name in ("<pad>", "<unk>", "<mask>"))
        self.sep_id, self.eom_id = controls.get("<sep>"), controls.get("<eom>")
        self.fim_prefix_id, self.fim_middle_id, self.fim_suffix_id = (
            controls.get(f"<fim_{part}>", controls.get(f"<|fim_{part}|>", controls.get(f"<dummy_{number}>")))
            for number, part in enumerate(("prefix", "middle", "suffix"))
        )
        self.digest = digest
        if end != usual:  # the same files in another role make other records
            self.digest = hashlib.sha256(f"{digest} {end}".encode()).hexdigest()
        self._tokenizer = _tokenizer(content, controls, template=False)
        self._strips_space = byte_level.strips_leading_space(content)
        self._replaces_end = set(SPECIAL_TOKENS) <= set(controls) and not self._strips_space
        self._without_text = frozenset(controls.values())

    @classmethod
    def from_directory(cls, directory: str | Path) -> "Vocabulary":
        """Reads `tokenizer.json`, or one `*vocab.json` and one `*merges.txt`.

        Beside such a pair, `added_tokens.json` ({name: id}) or "codegen_layout" in `tokenizer_config.json`
        ({"family": "codegen2" or "codegen1-multi", "num_masks": 899}) says what CodeGen adds to GPT-2's BPE.
        """
        directory = Path(directory)
        try:
            return cls._of_files(directory)
        except UserError:
            raise
        except Exception as error:  # the library raises bare ones, and damaged tables fail in any way
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise UserError(f"{directory} holds no intact tokenizer ({reason}); fetch or write it again.") from error

    @classmethod
    def _of_files(cls, directory: Path) -> "Vocabulary":
        config = _read_json(directory / "tokenizer_config.json")
        roles = {}
        for name in ("eos_token", "bos_token"):
            value = config.get(name)
            roles[name] = value.get("content", "") if isinstance(value, dict) else value or ""
        if (directory / "tokenizer.json").is_file():
            return _from_tokenizer_json(directory / "tokenizer.json", roles)
        pair = [sorted(directory.glob(pattern)) for pattern in ("*vocab.json", "*merges.txt")]
        if [len(files) for files in pair] != [1, 1]:
            raise UserError(
                f"{directory} holds {len(pair[0])} *vocab.json and {len(pair[1])} *merges.txt files; give a directory "
                f"with tokenizer.json or with exactly one of each."
            )
        return _from_bpe_files(pair[0][0], pair[1][0], config, roles)

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

    def encode_template(self, text: str) -> list[int]:
        """The ids of a text in which the names of control tokens stand for their ids; never for text of others."""
        return self._template.encode(text, add_special_tokens=False).ids

    @cached_property
    def _template(self) -> Tokenizer:
        return _tokenizer(self._content, self.control_tokens, template=True)

    def decode(self, ids: Iterable[int], *, continuation: bool = False) -> str:
        """The text of `ids`, spaces as they are; control tokens and ids beyond the vocabulary have none.

        A model's table may be padded beyond the vocabulary, as T5's is, and may emit such an id. A tokenizer of Llama's
        puts a blank before each text: it is taken away at the beginning and behind each `bos_id`, and with
        `continuation` (of a text that was decoded before) only behind `bos_id`.
        """
        parts: list[list[int]] = [[]]
        for index in map(int, ids):
            if self._strips_space and index == self.bos_id:
                parts.append([])
            elif 0 <= index < self.size and index not in self._without_text:
                parts[-1].append(index)
        texts = [self._tokenizer.decode(part, skip_special_tokens=False) for part in parts]
        if self._strips_space:
            first = texts[0] if continuation else texts[0].removeprefix(" ")
            texts = [first, *(text.removeprefix(" ") for text in texts[1:])]
        return "".join(texts)

    def sentinel_id(self, k: int) -> int:
        """The id of `<extra_id_k>`, or of `<mask_{k + 1}>`."""
        if not 0 <= k < self.num_sentinels:
            raise UserError(f"sentinel {k} asked for, the vocabulary has {self.num_sentinels}; use fewer spans.")
        return self.size - 1 - k

    @cached_property
    def sentinel_ids(self) -> tuple[int, ...]:
        """All sentinels, `<extra_id_0>` (or `<mask_1>`) first."""
        return tuple(self.size - 1 - k for k in range(self.num_sentinels))

    @cached_property
    def text_ids(self) -> tuple[int, int]:
        """Half-open range of ids in which ordinary tokens lie (what a random replacement is drawn from)."""
        controls = np.asarray([-1, *sorted(self._without_text), self.size])
        widest = int(np.argmax(np.diff(controls)))
        return int(controls[widest]) + 1, int(controls[widest + 1])

    @cached_property
    def byte_lengths(self) -> np.ndarray:
        """int32 [size]: the UTF-8 bytes that each id stands for, 0 for control tokens."""
        return byte_level.byte_lengths(self._content, self.control_tokens, self.size)

    def save(self, directory: str | Path) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json`, which `from_directory` and AutoTokenizer read."""
        if self._replaces_end:
            raise UserError("a vocabulary in CodeT5's layout is saved by copying its vocab.json and merges.txt.")
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        names = {index: name for name, index in self.control_tokens.items()}
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        roles = (("bos_token", self.bos_id), ("eos_token", self.eos_id), ("unk_token", self.unk_id))
        config |= {role: names[index] for role, index in roles}
        for name, value in (("tokenizer.json", self._content), ("tokenizer_config.json", config)):
            text = json.dumps(value, ensure_ascii=False, indent=None if value is self._content else 1) + "\n"
            (directory / name).write_text(text, encoding="utf-8")

    def __eq__(self, other) -> bool:
        return isinstance(other, Vocabulary) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


def _tokenizer(content: Mapping, controls: Mapping[str, int], *, template: bool) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(byte_level.readable(content, controls, template=template)))


def _digest(paths: Sequence[Path]) -> str:
    """sha256 of the files' contents, each led by its length so that no two lists of files look alike."""
    total = hashlib.sha256()
    for path in paths:
        content = path.read_bytes()
        total.update(f"{len(content)}|".encode() + content)
    return total.hexdigest()


def _read_json(path: Path) -> dict:
    """The file's dictionary, empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); fetch or write it again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not an object; fetch or write it again.")
    return content


def _read_merges(path: Path) -> list[list[str]]:
    try:
        return byte_level.read_merges(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}); fetch or write it again.") from error


def _from_bpe_files(vocab_file: Path, merges_file: Path, config: Mapping, roles: Mapping) -> Vocabulary:
    vocab, layout = _read_json(vocab_file), config.get("codegen_layout")
    merges = _read_merges(merges_file)
    added = _read_json(vocab_file.parent / "added_tokens.json")
    if layout:
        masks = layout.get("num_masks", byte_level.CODEGEN_MASKS)
        content = byte_level.codegen_content(vocab, merges, layout.get("family"), masks)
        return Vocabulary(content, byte_level.digest_of(content), roles)
    if added:
        ends = {byte_level.END: vocab[byte_level.END]} if byte_level.END in vocab else {}
        content = byte_level.content_of(vocab, merges, ends | added)
        return Vocabulary(content, byte_level.digest_of(content), roles)
    if tuple(token for token in (*SPECIAL_TOKENS, byte_level.END) if token in vocab) == SPECIAL_TOKENS:
        if not any(token.startswith("<extra_id_") for token in vocab):
            added = {f"<extra_id_{CODET5_SENTINELS - 1 - k}>": len(vocab) + k for k in range(CODET5_SENTINELS)}
    return Vocabulary(byte_level.content_of(vocab, merges, added), _digest([vocab_file, merges_file]), roles)


def _from_tokenizer_json(path: Path, roles: Mapping) -> Vocabulary:
    content = _read_json(path)
    if content.get("model", {}).get("type") != "BPE":
        raise UserError(f"{path} holds a model of type {content.get('model', {}).get('type')}; only BPE is supported.")
    is_codegen = any(token["content"] == "<mask_1>" for token in content.get("added_tokens", ()))
    return Vocabulary(content, byte_level.digest_of(content) if is_codegen else _digest([path]), roles)


def train_bpe(texts: Iterable, size: int, special_tokens: Sequence[str]) -> Tokenizer:
    """A byte-level BPE of `size` entries: the special tokens, 256 bytes, and what the texts (or lists of them) give."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def train_vocabulary(texts: Iterable[str], size: int, num_sentinels: int, directory: str | Path) -> Vocabulary:
    """Trains a byte-level BPE with CodeT5's layout and writes `vocab.json`, `merges.txt`, `tokenizer_config.json`.

    `size` counts everything: 5 special tokens, 256 bytes, merges and `num_sentinels`. transformers' AutoTokenizer and
    RobertaTokenizer read the directory too.
    """
    least = len(SPECIAL_TOKENS) + 256 + num_sentinels
    if size < least:
        raise UserError(f"size={size} is below {least} (5 special tokens, 256 bytes, {num_sentinels} sentinels).")
    tokenizer = train_bpe(texts, size - num_sentinels, SPECIAL_TOKENS)
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
