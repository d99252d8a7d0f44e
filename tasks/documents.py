"""Whole documents for pretraining decoders (codegen2_jax/data/documents.py): one record is one file, or one row.

| task | documents |
|---|---|
| documents_python | the interpreter's standard library, without tests and PyTask-CL's valid and test files |
| documents_text | pydoc's topics, the library's long docstrings and READMEs; with BOOLQ_DIR BoolQ's train passages |
| documents_codetask_{java,c_sharp,ruby} | the methods of CodeTask-CL's training rows; needs CODETASK_CL_DIR |
| documents_directory, documents_jsonl, documents_parquet, or any name | what this process's environment describes |

A record has "targets", the text's tokens without special tokens and uncut, "id" and "bytes", the UTF-8 length of the
text. The text itself is not kept: the vocabulary gives it back. A corpus described in the environment under one of the
first names takes the place of what is there.
"""

import functools

import seqio
import tensorflow as tf

from codegen2_jax.data import documents
from codegen2_jax.data.document_selection import SPLITS
from codegen2_jax.data.documents import Corpus, DocumentTask
from tasks import sequences

TOKENIZED_TOGETHER = 32  # whole files: a few hundred at once would hold hundreds of megabytes
_DEFAULT = (
    DocumentTask(name="documents_python", kind="python"),
    DocumentTask(name="documents_text", kind="text"),
    *(
        DocumentTask(name=f"documents_codetask_{language}", kind="codetask", language=language)
        for language in ("java", "c_sharp", "ruby")
    ),
)
_TASKS = {task.name: task for task in (*_DEFAULT, *documents.from_environment())}
STREAMS = {"documents": ("documents_python", "documents_text")}


@functools.lru_cache(maxsize=2)
def _corpus(name: str) -> Corpus:
    return Corpus(_TASKS[name])


class DocumentSource(seqio.DataSource):
    """The documents of a corpus as {"id", "targets_text", "bytes"}, streamed shard by shard."""

    def __init__(self, name: str):
        self._name = name
        super().__init__(splits=SPLITS)

    @property
    def supports_arbitrary_sharding(self) -> bool:
        """No: a shard is what the source has as one."""
        return False

    def list_shards(self, split: str) -> list[str]:
        """Names of the shards: files, or parts of a directory; the same for both splits."""
        del split
        return [shard.name for shard in _corpus(self._name).shards]

    def shard_identity(self, split: str, number: int) -> str:
        """What decides the examples of a shard: those that a killed run has made are taken where it is the same."""
        return f"{split} {_corpus(self._name).shard_identity(number)}"

    def num_input_examples(self, split: str) -> int:
        """Documents that stay, for proportional mixing; judges the corpus."""
        return _corpus(self._name).selection.counts[split]["examples"]

    def get_dataset(self, split="train", shuffle=False, seed=None, shard_info=None, **unused):
        """All shards, or the one that shard_info numbers. There is one order; training shuffles the cache."""
        del shuffle, seed, unused
        corpus = _corpus(self._name)
        assert shard_info is None or shard_info.num_shards in (1, len(corpus.shards)), shard_info
        one = shard_info.index if shard_info is not None and shard_info.num_shards > 1 else None
        corpus.selection  # noqa: B018  judged here, so that its errors are not TensorFlow's

        def rows():
            for document in corpus.documents(split, one):
                data = document.text.encode("utf-8")
                yield {"id": document.id.encode("utf-8"), "targets_text": data, "bytes": len(data)}

        kinds = {"id": tf.string, "targets_text": tf.string, "bytes": tf.int64}
        signature = {name: tf.TensorSpec((), kind) for name, kind in kinds.items()}
        return tf.data.Dataset.from_generator(rows, output_signature=signature)


def tokenize(dataset: tf.data.Dataset, output_features) -> tf.data.Dataset:
    """The text becomes tokens (int32, no special tokens); it is not kept beside them."""

    def one(batch):
        return {
            "id": batch["id"],
            "bytes": batch["bytes"],
            "targets": output_features["targets"].vocabulary.encode_tf(batch["targets_text"]),
        }

    return dataset.batch(TOKENIZED_TOGETHER).map(one).unbatch()


def provenance(task: str, split: str) -> dict:
    """Counts with reasons, digests, licence and definition of the corpus."""
    return _corpus(task).provenance(split)


for _name in _TASKS:
    seqio.TaskRegistry.add(
        _name,
        source=DocumentSource(_name),
        preprocessors=[tokenize],
        output_features={"targets": seqio.Feature(vocabulary=sequences.VOCABULARY, add_eos=False, dtype=tf.int32)},
        metric_fns=[],
    )
