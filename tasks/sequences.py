"""What every task module here shares: lazy vocabulary and source, the way from text to `<s> tokens </s>`, metrics."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import seqio
import tensorflow as tf

import codegen2_jax
from codegen2_jax.data.sources import TextExample
from codegen2_jax.data.vocabulary import Vocabulary, as_seqio
from codegen2_jax.metrics import bleu, codebleu
from codegen2_jax.metrics import exact_match as exact_match_metric

TOKENIZED_TOGETHER = 256
VOCABULARY_VARIABLE = "CODEGEN2_JAX_VOCABULARY"
PACKAGED_VOCABULARY = Path(codegen2_jax.__file__).parent / "pretrained" / "nano_t5"


def vocabulary_directory() -> Path:
    """The directory that the environment names, else the packaged model's."""
    return Path(os.environ.get(VOCABULARY_VARIABLE) or PACKAGED_VOCABULARY)


@functools.lru_cache(maxsize=4)
def _vocabulary_in(directory: Path) -> seqio.Vocabulary:
    plain = Vocabulary.from_directory(directory)
    vocabulary = as_seqio(plain)
    vocabulary.plain = plain
    return vocabulary


class LazyVocabulary(seqio.Vocabulary):
    """The vocabulary of vocabulary_directory(), read when it is first used, so that importing a task needs no file."""

    def __init__(self):
        super().__init__()

    @property
    def _found(self) -> seqio.Vocabulary:
        return _vocabulary_in(vocabulary_directory())

    @property
    def digest(self) -> str:
        """sha256 of the vocabulary's files."""
        return self._found.digest

    @property
    def extra_ids(self):
        return self._found.extra_ids

    @property
    def pad_id(self):
        return self._found.pad_id

    @property
    def bos_id(self):
        return self._found.bos_id

    @property
    def eos_id(self):
        return self._found.eos_id

    @property
    def unk_id(self):
        return self._found.unk_id

    @property
    def _base_vocab_size(self):
        return self._found._base_vocab_size

    def _encode(self, s):
        return self._found._encode(s)

    def _decode(self, ids):
        return self._found._decode(ids)

    def _encode_tf(self, s):
        """Tokens of a scalar string, or of a vector of strings as a ragged tensor: one call of Python for all."""
        if s.shape.rank == 0:
            return self._found._encode_tf(s)

        def encode(texts):
            rows = self._found.plain.encode_batch([text.decode("utf-8") for text in texts])
            lengths = np.asarray([len(row) for row in rows], np.int64)
            return np.asarray([token for row in rows for token in row], np.int32), lengths

        values, lengths = tf.numpy_function(encode, [s], (tf.int32, tf.int64), stateful=False)
        return tf.RaggedTensor.from_row_lengths(tf.ensure_shape(values, [None]), tf.ensure_shape(lengths, [None]))

    def _decode_tf(self, ids):
        return self._found._decode_tf(ids)

    def __eq__(self, other):
        return self is other or self._found == other


VOCABULARY = LazyVocabulary()


class TextSource(seqio.FunctionDataSource):
    """Text examples that a function reads, when they are asked for and not before."""

    def __init__(self, read: Callable[[str], Sequence[TextExample]], splits: Sequence[str]):
        self._read = read
        super().__init__(dataset_fn=self._dataset, splits=splits)

    def _dataset(self, split, shuffle_files=False, seed=None):
        del shuffle_files, seed  # SeqIO shuffles the task; the source has one order
        return text_dataset(self._read(split))

    def num_input_examples(self, split: str) -> int:
        """Examples of a split, for proportional mixing; reads it."""
        return len(self._read(split))


def text_dataset(examples: Sequence[TextExample]) -> tf.data.Dataset:
    """{"id", "inputs_text", "targets_text"}, scalar strings. inputs_text is left out where no example has an input."""
    fields = {"id": "id", "inputs": "inputs_text", "targets": "targets_text"}
    if examples and not any(example.inputs for example in examples):
        del fields["inputs"]
    columns = {}
    for field, name in fields.items():
        columns[name] = tf.constant([getattr(example, field) for example in examples], tf.string)
    return tf.data.Dataset.from_tensor_slices(columns)


def tokenize(dataset: tf.data.Dataset, output_features: Mapping[str, seqio.Feature]) -> tf.data.Dataset:
    """Adds each feature's tokens (int32, no special tokens) from its text; keeps id and texts."""

    def add_tokens(batch):
        vocabularies = {name: feature.vocabulary for name, feature in output_features.items()}
        return batch | {name: one.encode_tf(batch[f"{name}_text"]) for name, one in vocabularies.items()}

    # In batches: a call of Python for each text would take most of the time.
    return dataset.batch(TOKENIZED_TOGETHER).map(add_tokens).unbatch()


def wrap_and_cut(
    dataset: tf.data.Dataset, output_features: Mapping[str, seqio.Feature], *, max_lengths: Mapping[str, int]
) -> tf.data.Dataset:
    """`<s> tokens </s>`, cut from the right so that the length with both is at most max_lengths[feature].

    A vocabulary with one token for both (GPT-2's `<|endoftext|>`) gets it at the end only: a target that begins with
    its own end would be over before it began.
    """

    def wrap(example):
        wrapped = {}
        for name, feature in output_features.items():
            begin, end = feature.vocabulary.bos_id, feature.vocabulary.eos_id
            around = [end] if begin == end else [begin, end]
            kept = example[name][: max_lengths[name] - len(around)]
            wrapped[name] = tf.concat([around[:-1], kept, around[-1:]], axis=0)
        return {**example, **wrapped}

    return dataset.map(wrap, num_parallel_calls=tf.data.AUTOTUNE)


def codet5_bleu(targets, predictions):
    """Corpus BLEU-4 as CodeT5 scores generated code, 0..100."""
    return {"codet5_bleu": bleu.codet5_bleu(predictions, targets)}


def codet5_smooth_bleu(targets, predictions):
    """Mean smoothed sentence BLEU-4 as CodeT5 scores summaries, 0..100."""
    return {"codet5_smooth_bleu": bleu.codet5_smooth_bleu(predictions, targets)}


def exact_match(targets, predictions):
    """Percentage of predictions equal to their reference."""
    return {"exact_match": exact_match_metric.exact_match(predictions, targets)}


def codebleu_java(targets, predictions):
    """CodeBLEU of Java, 0..100, or None without tree-sitter."""
    return {"codebleu_java": codebleu.codebleu_java(predictions, targets)}


def codebleu_c_sharp(targets, predictions):
    """CodeBLEU of C#, 0..100, or None without tree-sitter."""
    return {"codebleu_c_sharp": codebleu.codebleu_c_sharp(predictions, targets)}


def reference_text(decoded: str, example: Mapping | None = None, is_target: bool = False) -> str:
    """SeqIO's postprocessor: a target is scored as it was before tokenisation and cutting."""
    return example["targets_text"].decode("utf-8") if is_target else decoded


def register(
    name: str,
    read: Callable[[str], Sequence[TextExample]],
    *,
    max_lengths: tuple[int, int],
    metric_fns: Sequence[Callable],
    splits: Sequence[str] = ("train", "valid", "test"),
) -> None:
    """Adds a text-to-text task: features inputs and targets, at most max_lengths tokens each, specials included."""
    feature = seqio.Feature(vocabulary=VOCABULARY, add_eos=False, dtype=tf.int32)
    limits = dict(zip(("inputs", "targets"), max_lengths, strict=True))
    seqio.TaskRegistry.add(
        name,
        source=TextSource(read, splits),
        preprocessors=[tokenize, functools.partial(wrap_and_cut, max_lengths=limits)],
        output_features={"inputs": feature, "targets": feature},
        postprocess_fn=reference_text,
        metric_fns=list(metric_fns),
    )


def register_raw(
    name: str, read: Callable[[str], Sequence[TextExample]], *, features: Sequence[str], splits: Sequence[str]
) -> None:
    """Adds a pretraining task: tokens of the features without special tokens, uncut; objectives do the rest."""
    feature = seqio.Feature(vocabulary=VOCABULARY, add_eos=False, dtype=tf.int32)
    seqio.TaskRegistry.add(
        name,
        source=TextSource(read, splits),
        preprocessors=[tokenize],
        output_features=dict.fromkeys(features, feature),
        metric_fns=[],
    )


def register_stream(name: str, tasks: Sequence[str]) -> None:
    """Adds a mixture of the tasks, each in proportion to its number of training examples."""
    seqio.MixtureRegistry.add(name, list(tasks), default_rate=seqio.mixing_rate_num_examples)
