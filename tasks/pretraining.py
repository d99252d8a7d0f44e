"""What nano-t5 is pretrained on: the standard library and the permissively licensed packages of the environment.

No file behind PyTask-CL's valid and test splits, and no copy of one of their functions, is in it
(codegen2_jax/data/python_corpus.py). Records are raw tokens: objectives cut, wrap and corrupt them. Code in JavaScript
and code with abstracted names stand alone, without the Python they were made from: the model sees the language, not
PyTask-CL's translation or refinement task.
"""

import functools
from collections.abc import Sequence

from codegen2_jax.data import python_corpus
from codegen2_jax.data.sources import TextExample, stable_hash
from tasks import sequences

TASKS = ("pretraining_windows", "pretraining_pairs", "pretraining_javascript", "pretraining_abstracted")
STREAMS = {"pretraining": TASKS}
VALID_FILES_PER_MILLE = 5


@functools.lru_cache(maxsize=1)
def _corpus() -> python_corpus.Corpus:
    return python_corpus.gather()


@functools.lru_cache(maxsize=1)
def _texts() -> dict[tuple[str, str], tuple[TextExample, ...]]:
    """{(task, split): examples}. One pass over the corpus, in the order of a hash of the file's path."""
    found = {(task, split): [] for task in TASKS for split in ("train", "valid")}
    for file in sorted(_corpus().files, key=lambda one: stable_hash(one.path)):
        split = "valid" if stable_hash(f"pretraining/{file.path}") % 1000 < VALID_FILES_PER_MILLE else "train"
        texts = python_corpus.texts_of(file)
        windows = [(f"{file.path}#{number}", text) for number, text in enumerate(texts.windows)]
        found["pretraining_pairs", split] += [
            TextExample(id=pair.id, inputs=pair.text, targets=pair.code) for pair in texts.pairs
        ]
        alone = {"windows": windows, "javascript": texts.javascript, "abstracted": texts.abstracted}
        for kind, named in alone.items():
            examples = (TextExample(id=name, inputs="", targets=text) for name, text in named)
            found[f"pretraining_{kind}", split] += examples
    return {key: tuple(examples) for key, examples in found.items()}


def _read(task: str, split: str) -> Sequence[TextExample]:
    return _texts()[task, split]


def provenance(task: str, split: str) -> dict:
    """The corpus's digest and its packages with their licences."""
    corpus = _corpus()
    packages = [f"{name} {version} ({licence})" for name, version, licence, files, _ in corpus.licences if files]
    return {
        "sources": {},
        "licence": " AND ".join(sorted({licence for _, _, licence, files, _ in corpus.licences if files})),
        "settings": {"corpus_sha256": python_corpus.corpus_digest(corpus), "packages": packages},
        "counts": {"files": len(corpus.files), "examples": len(_read(task, split))},
    }


for _name in TASKS:
    _features = ("inputs", "targets") if _name == "pretraining_pairs" else ("targets",)
    sequences.register_raw(_name, functools.partial(_read, _name), features=_features, splits=("train", "valid"))
