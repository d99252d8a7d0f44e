"""PyTask-CL: four tasks from the interpreter's own standard library; nothing to download.

How the examples are made, and which functions are left out, is in codegen2_jax/data/pytask_cl.py. The texts are the
Python Software Foundation's and its contributors', under the PSF licence.
"""

import functools
from collections.abc import Sequence

from codegen2_jax.data import bug_injection, pytask_cl, python_functions, sources
from codegen2_jax.data.javascript import calls, expressions, from_python, scopes, strings, syntax
from tasks import sequences

# (source, target) tokens, <s> and </s> included; a few functions in a thousand are longer and get cut.
MAX_LENGTHS = {
    "pytask_generate": (128, 128),
    "pytask_translate": (128, 128),
    "pytask_summarize": (128, 64),
    "pytask_refine": (128, 128),
}
# What stands before a source where tags are on; like those of CodeTask-CL.
TAGS = {
    "pytask_generate": "<generate> <python> ",
    "pytask_translate": "<translate> <python-javascript> ",
    "pytask_summarize": "<summarize> <python> ",
    "pytask_refine": "<refine> <python> ",
}
STREAMS = {"pytask_cl": pytask_cl.TASKS}

_MADE_BY = (
    bug_injection, calls, expressions, from_python, pytask_cl, python_functions, scopes, sources, strings, syntax,
)  # fmt: skip


def _read(task: str, split: str) -> Sequence[sources.TextExample]:
    return pytask_cl.examples_of(task).examples[split]


def provenance(task: str, split: str) -> dict:
    """Counts of one split and where its texts come from: the library's files and the code that made the examples."""
    files = {str(path): digest for path, digest in _file_digests()}
    return {
        "sources": files,
        "licence": sources.STANDARD_LIBRARY_LICENCE,
        "settings": {"interpreter": pytask_cl.interpreter(), "limits": repr(pytask_cl.LIMITS)},
        "max_lengths": list(MAX_LENGTHS[task]),
        "tag": TAGS[task],
        "counts": pytask_cl.examples_of(task).counts[split],
    }


@functools.lru_cache(maxsize=1)
def _file_digests() -> tuple[tuple[str, str], ...]:
    paths = [*sources.standard_library_paths(), *(module.__file__ for module in _MADE_BY)]
    return tuple((str(path), sources.file_digest(path)) for path in paths)


for _name in pytask_cl.TASKS:
    _bleu = sequences.codet5_smooth_bleu if _name == "pytask_summarize" else sequences.codet5_bleu
    sequences.register(
        _name,
        functools.partial(_read, _name),
        max_lengths=MAX_LENGTHS[_name],
        metric_fns=(_bleu, sequences.exact_match),
    )
sequences.register_stream("pytask_cl", pytask_cl.TASKS)
