"""A vocabulary of CodeGen2's layout, learned from the documents that a model will be trained on."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from codegen2_jax.data.decoder_vocabularies import train_codegen_vocabulary
from codegen2_jax.data.documents import Corpus, DocumentTask
from codegen2_jax.errors import UserError
from codegen2_jax.training import run_directory


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocabularyTraining:
    """A job: `run()` writes tokenizer.json and tokenizer_config.json into MODEL_DIR.

    Attributes:
      documents: the corpora whose training documents are read (data/documents.py).
      size: entries, the control tokens included.
      num_masks: `<mask_1>` to `<mask_N>`, at the top end.
    """

    model_dir: str
    documents: Sequence[DocumentTask]
    size: int
    num_masks: int

    def _texts(self) -> Iterator[str]:
        for task in self.documents:
            for document in Corpus(task).documents("train"):
                yield document.text

    def run(self, *, config_text: str) -> None:
        directory = Path(self.model_dir)
        run_directory.check_config(directory, config_text)
        with run_directory.occupied(directory):
            vocabulary = train_codegen_vocabulary(self._texts(), self.size, self.num_masks, directory)
            run_directory.write_config(directory, config_text)
        print(f"wrote {vocabulary.size:,} entries to {directory}; sha256 {vocabulary.digest}")

    def dry_run(self) -> None:
        """Says what would be read."""
        for task in self.documents:
            print(f"{task.name}: {len(Corpus(task).shards)} shards")

    def show_batch(self) -> None:
        raise UserError("a vocabulary is learned from whole documents and reads no batch; leave --show_batch out.")
