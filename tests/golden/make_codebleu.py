"""Writes codebleu.json: what the PyPI package codebleu says about pairs made from the CodeTask-CL files.

The package asks for an older tree-sitter than ours, so it lives in an environment of its own, with our grammars:

    python -m venv /tmp/codebleu
    /tmp/codebleu/bin/pip install -c constraints.txt tree-sitter tree-sitter-java tree-sitter-c-sharp
    /tmp/codebleu/bin/pip install --no-deps codebleu==0.7.0
    /tmp/codebleu/bin/python tests/golden/make_codebleu.py ../shared/data/codetask_cl

The package joins the sources of a value in the order of Python's randomised hashes; here a set that keeps its order
stands in for `set`. How often its plain answer depends on the hash seed is in the file too. The file holds numbers
only: [total, BLEU, weighted BLEU, syntax, data flow], each 0..1, by file, row and kind of hypothesis.
"""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROWS = {"java": 100, "c_sharp": 150}
KINDS = ("same", "source", "next", "half", "renamed", "gaps", "lines", "words")
# Files of (source, target), below the directory of CodeTask-CL; one name and two fields where rows are JSON.
FILES = {
    "java": (
        ("refine/small/test.buggy-fixed.buggy", "refine/small/test.buggy-fixed.fixed"),
        ("translate/test.java-cs.txt.cs", "translate/test.java-cs.txt.java"),
        ("concode/dev.json",),
    ),
    "c_sharp": (
        ("translate/test.java-cs.txt.java", "translate/test.java-cs.txt.cs"),
        ("translate/valid.java-cs.txt.java", "translate/valid.java-cs.txt.cs"),
    ),
}
PARTS = ("codebleu", "ngram_match_score", "weighted_ngram_match_score", "syntax_match_score", "dataflow_match_score")
HASH_SEEDS = range(16)


def read_rows(directory: Path, names: tuple[str, ...]) -> list[tuple[str, str]]:
    """The (source, target) rows of a file or a pair of files."""
    lines = [(directory / name).read_text(encoding="utf-8").split("\n") for name in names]
    if len(names) == 1:
        return [(row["nl"], row["code"]) for row in map(json.loads, filter(None, lines[0]))]
    return [pair for pair in zip(*lines, strict=True) if all(pair)]


def hypothesis(kind: str, source: str, target: str, following: str) -> str:
    """A prediction for `target`: right, plausible, or broken, by kind."""
    if kind == "gaps":
        return "".join(target[start : start + 16] for start in range(0, len(target), 17))
    if kind == "words":
        words = target.split()
        return " ".join(words[: len(words) // 3] + words[len(words) // 2 :])
    return {
        "same": target,
        "source": source,
        "next": following,
        "half": target[: len(target) // 2],
        "renamed": re.sub(r"\b[a-z]\w*[A-Z_]\w*\b|\bVAR_", r"other_\g<0>", target),
        "lines": target.replace(";", '; // it\'s a "comment"\n').replace("{", "{ /* } */"),
    }[kind]


def pairs(directory: Path, language: str, num_rows: int | None = None) -> Iterator[tuple[str, str, str]]:
    """(key, hypothesis, reference) of ASCII rows; every row takes the next kind."""
    for names in FILES[language]:
        rows = read_rows(directory, names)
        for i in range(min(num_rows or ROWS[language], len(rows))):
            (source, target), following = rows[i], rows[(i + 1) % len(rows)][1]
            kind = KINDS[i % len(KINDS)]
            predicted = hypothesis(kind, source, target, following)
            if (predicted + target).isascii():
                yield f"{names[-1]}:{i + 1}:{kind}", predicted, target


class OrderedSet:
    """As much of a set as the package uses."""

    def __init__(self, items=()):
        self.items = dict.fromkeys(items)

    def __iter__(self):
        return iter(self.items)

    def __contains__(self, item):
        return item in self.items

    def add(self, item):
        self.items[item] = None


def package_scores(hypotheses: list[str], references: list[str], language: str) -> list[float]:
    """The package's numbers, in the order of PARTS, to ten decimals."""
    import codebleu

    result = codebleu.calc_codebleu(references, hypotheses, language)
    return [round(float(result[part]), 10) for part in PARTS]


def package_data_flow(directory: Path) -> dict[str, float]:
    """The package's own data-flow match of each pair, under this process's hash seed."""
    return {
        key: package_scores([predicted], [target], language)[-1]
        for language in FILES
        for key, predicted, target in pairs(directory, language)
    }


def all_scores(directory: Path) -> dict:
    """Scores of each pair and of each language's corpus, with sets that keep their order."""
    import codebleu.dataflow_match
    import codebleu.parser.DFG

    codebleu.dataflow_match.set = codebleu.parser.DFG.set = OrderedSet
    golden = {}
    for language in FILES:
        rows = list(pairs(directory, language))
        golden[language] = {
            "corpus": package_scores([row[1] for row in rows], [row[2] for row in rows], language),
            "pairs": {key: package_scores([predicted], [target], language) for key, predicted, target in rows},
        }
    return golden


def main(directory: Path) -> None:
    if os.environ.get("ONLY_DATA_FLOW"):
        print(json.dumps(package_data_flow(directory)))
        return
    golden = all_scores(directory)
    seeded = []
    for seed in HASH_SEEDS:
        environment = os.environ | {"PYTHONHASHSEED": str(seed), "ONLY_DATA_FLOW": "1"}
        done = subprocess.run([sys.executable, *sys.argv], env=environment, stdout=subprocess.PIPE, check=True)
        seeded.append(json.loads(done.stdout))
    for language in FILES:
        own = {key: scores[-1] for key, scores in golden[language]["pairs"].items()}
        found = {key: {one[key] for one in seeded} for key in own}
        golden[language]["data_flow_by_hash_seed"] = {
            "pairs": len(own),
            "seeds": len(seeded),
            "changing": sum(len(values) > 1 for values in found.values()),
            "constant_but_not_as_here": sum(len(found[key]) == 1 and own[key] not in found[key] for key in own),
        }
    names = ("codebleu", "tree-sitter", "tree-sitter-java", "tree-sitter-c-sharp")
    golden["packages"] = {name: importlib.metadata.version(name) for name in names}
    text = json.dumps(golden, indent=0)
    # One line per pair.
    text = re.sub(r"\[\n([^]]*)\n\]", lambda match: "[" + match[1].replace("\n", " ") + "]", text)
    Path(__file__).with_name("codebleu.json").write_text(text + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
