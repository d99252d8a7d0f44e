"""CodeTask-CL: the four tasks of "Exploring Continual Learning for Code Generation Models" (arXiv 2307.02435).

The files are not part of this project: CODETASK_CL_DIR names the folder that holds them under their official names
(codegen2_jax/data/codetask_cl.py). CodeXGLUE distributes them under the C-UDA 1.0.
"""

import functools
from collections.abc import Sequence

from codegen2_jax.data import codetask_cl, sources
from tasks import sequences

# (source, target) tokens with <s> and </s>, as in the paper's code and salesforce/CodeT5 sh/run_exp.py.
MAX_LENGTHS = {
    "codetask_concode": (320, 150),
    "codetask_translate": (320, 256),
    "codetask_summarize": (256, 128),
    "codetask_refine": (130, 120),
}
# What stands before a source where tags are on, as the paper's released code writes it.
TAGS = {
    "codetask_concode": "<concode> <None> ",
    "codetask_translate": "<translate> <java-cs> ",
    "codetask_summarize": "<summarize> <ruby> ",
    "codetask_refine": "<refine> <small> ",
}
CODEBLEU = {
    "codetask_concode": sequences.codebleu_java,
    "codetask_translate": sequences.codebleu_c_sharp,
    "codetask_refine": sequences.codebleu_java,
}
STREAMS = {"codetask_cl": codetask_cl.TASKS}


def _read(task: str, split: str) -> Sequence[sources.TextExample]:
    return codetask_cl.read_split(task, split).examples


def provenance(task: str, split: str) -> dict:
    """Digests of the split's files, and every row that was not used."""
    read = codetask_cl.read_split(task, split)
    return {
        "sources": dict(read.digests),
        "licence": "C-UDA-1.0",
        "settings": {},
        "environment": [codetask_cl.DIRECTORY_VARIABLE],
        "max_lengths": list(MAX_LENGTHS[task]),
        "tag": TAGS[task],
        "rejected": [{"file": one.file, "line": one.line, "reason": one.reason} for one in read.rejected],
        "counts": {"rows": read.rows, "examples": len(read.examples), "rejected": len(read.rejected)},
    }


for _name in codetask_cl.TASKS:
    _bleu = sequences.codet5_smooth_bleu if _name == "codetask_summarize" else sequences.codet5_bleu
    sequences.register(
        _name,
        functools.partial(_read, _name),
        max_lengths=MAX_LENGTHS[_name],
        metric_fns=(_bleu, sequences.exact_match, *([CODEBLEU[_name]] if _name in CODEBLEU else [])),
    )
sequences.register_stream("codetask_cl", codetask_cl.TASKS)
