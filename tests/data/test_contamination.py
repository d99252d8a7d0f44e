"""Contamination: planted leaks of every kind are found, near misses are not, and the report says where."""

import ast
import gzip
import io
import json
import random
import re
import time
import tokenize
from pathlib import Path

import numpy as np
import pytest

from codegen2_jax.data import contamination
from codegen2_jax.data.contamination import Index, report
from codegen2_jax.data.evaluation_sets import EvaluationSet, Part, Problem, evaluation_sets
from codegen2_jax.data.sources import split_of, standard_library
from codegen2_jax.data.token_windows import KINDS, PROSE, PYTHON, SLASHES, code_tokens, family_of
from codegen2_jax.data.vocabulary import train_vocabulary
from codegen2_jax.errors import UserError

SHARED = Path(__file__).parents[3] / "shared/data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="shared/data is not here")

LIBRARY = standard_library()
HELD_OUT = [file for file in LIBRARY if split_of(file.path) != "train"]
CORPUS = [(file.path, file.text) for file in LIBRARY if split_of(file.path) == "train"]


def sources_of(file):
    """The functions of a file as they are written there: (name, text), 5 to 30 lines."""
    for node in ast.walk(ast.parse(file.text)):
        if isinstance(node, ast.FunctionDef) and 5 <= node.end_lineno - node.lineno <= 30:
            lines = file.text.split("\n")[node.lineno - 1 : node.end_lineno]
            indent = len(lines[0]) - len(lines[0].lstrip())
            yield f"{file.path}::{node.name}@{node.lineno}", "\n".join(line[indent:] for line in lines) + "\n"


FUNCTIONS = dict(item for file in HELD_OUT for item in sources_of(file))


def as_set(functions):
    problems = []
    for name, text in functions.items():
        problems.append(Problem(id=name, parts=(Part(name="function", text=text, family=PYTHON),)))
    return EvaluationSet(name="functions", problems=tuple(problems))


def respaced(text, rng):
    """Other white space between tokens, other indentation, comments here and there: the program is the same."""
    lines, line, depth = [], "", 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.INDENT:
            depth += 1
        elif token.type == tokenize.DEDENT:
            depth -= 1
        elif token.type == tokenize.NEWLINE:
            lines.append(line + rng.choice(["", "", f"   # note {rng.randrange(100)}"]))
            line = ""
        elif token.string.strip() and token.type != tokenize.COMMENT:
            line += ("\t" * depth if not line else rng.choice([" ", "  "])) + token.string
    return "\n".join(lines) + "\n"


def rewritten(text, rng):
    """Written anew from the syntax tree: no comment, redundant bracket or style of quotes is left."""
    return ast.unparse(ast.parse(text)) + "\n"


class _Rename(ast.NodeTransformer):
    """Every argument and every name that is assigned gets another name, used consistently; so does the function."""

    def __init__(self, tree, rng):
        nodes = list(ast.walk(tree))
        names = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        names |= {node.arg for node in nodes if isinstance(node, ast.arg)}
        names |= {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
        names = sorted(names - {"self", "cls"})
        self.new = {name: f"v{number}" for number, name in enumerate(rng.sample(names, len(names)))}

    def visit_Name(self, node):
        node.id = self.new.get(node.id, node.id)
        return node

    def visit_arg(self, node):
        node.arg = self.new.get(node.arg, node.arg)
        return self.generic_visit(node)

    def visit_FunctionDef(self, node):
        node.name = self.new.get(node.name, node.name)
        return self.generic_visit(node)


def renamed(text, rng):
    tree = ast.parse(text)
    return ast.unparse(_Rename(tree, rng).visit(tree)) + "\n"


def near_miss(text, rng):
    """The same first line, and half of the others replaced by another function's."""
    lines = text.rstrip().split("\n")
    other = rng.choice([one for one in FUNCTIONS.values() if one != text]).split("\n")
    for place in rng.sample(range(1, len(lines)), len(lines) // 2):
        lines[place] = rng.choice(other[1:])
    return "\n".join(lines) + "\n"


def planted(make, count, seed):
    """(evaluation set, corpus, {problem: record}): every function is inside an ordinary file of the corpus."""
    rng = random.Random(seed)
    names = rng.sample(sorted(name for name, text in FUNCTIONS.items() if len(text) > 250), count)
    corpus, where = dict(CORPUS), {}
    for name in names:
        path = rng.choice(sorted(corpus))
        lines = corpus[path].split("\n")
        places = [number for number, line in enumerate(lines) if re.match(r"(def|class) \w+.*:$", line)]
        place = rng.choice([*places, len(lines)])
        corpus[path] = "\n".join([*lines[:place], "", make(FUNCTIONS[name], rng), *lines[place:]])
        where[name] = path
    return as_set({name: FUNCTIONS[name] for name in names}), corpus, where


@pytest.fixture(scope="module")
def clean():
    """Problems found in the corpus as it is: functions that the library has twice."""
    result = report(CORPUS, [as_set(FUNCTIONS)])
    return {leak["problem"] for leak in result["sets"]["functions"]["leaks"]}


@pytest.mark.parametrize(
    ("make", "kinds", "recall"),
    [
        (lambda text, rng: text, {"verbatim"}, 0.99),
        (respaced, {"verbatim", "reformatted"}, 0.95),
        (rewritten, {"verbatim", "reformatted"}, 0.95),
        (renamed, set(KINDS), 0.80),
    ],
    ids=["verbatim", "respaced", "rewritten", "renamed"],
)
def test_planted_leaks_are_found(make, kinds, recall, clean):
    """The bars of the specification: 99 % verbatim, 95 % re-spaced, 80 % renamed, of 300 planted leaks."""
    problems, corpus, where = planted(make, 300, seed=0)
    start = time.process_time()
    result = report(corpus.items(), [problems])["sets"]["functions"]
    seconds = time.process_time() - start
    found = {leak["problem"]: leak for leak in result["leaks"]}
    hit = [name for name in where if name in found and found[name]["kind"] in kinds]
    size = sum(map(len, corpus.values())) / 1e6
    print(f"{len(hit)} of {len(where)} found as {result['found']}; {size:.1f} MB in {seconds:.1f} CPU s")
    assert result["problems"] == 300 and len(hit) >= recall * 300
    named = [where[name] in found[name]["records"] for name in hit]
    assert np.mean(named) > 0.97
    assert all(0.6 <= leak["share"] <= 1 for leak in found.values())


def test_near_misses_are_not(clean):
    """At most 1 % of 300: the same signature, half of the lines another's."""
    problems, corpus, where = planted(near_miss, 300, seed=1)
    result = report(corpus.items(), [problems])["sets"]["functions"]
    false = {leak["problem"] for leak in result["leaks"]} - clean
    print(f"{len(false)} of 300 near misses taken for leaks; {len(clean)} of {len(FUNCTIONS)} in the library twice")
    assert len(false) <= 3
    assert len(clean) < 0.05 * len(FUNCTIONS)


@pytest.mark.parametrize("file", LIBRARY[::9], ids=lambda file: file.path)
def test_python_tokens_are_those_of_tokenize(file):
    """Without comments, layout, quotes, round brackets and commas; strings split into words."""
    expected = []
    for token in tokenize.generate_tokens(io.StringIO(file.text).readline):
        if token.type in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            continue
        text = token.string
        if tokenize.tok_name[token.type].startswith("FSTRING"):
            pytest.skip("this interpreter takes f-strings apart")
        if token.type == tokenize.STRING:
            text = re.sub(r"^[rRbBuUfF]*('''|\"\"\"|'|\")(.*)\1$", r"\2", text, flags=re.DOTALL)
        expected += re.findall(r"\w+|[^\w\s\"'`(),]", text)
    assert code_tokens(file.text, PYTHON).tokens == expected


def test_what_is_a_name():
    text = 'def add(self, items):\n  """Sum of items."""\n  total = sum(items.values, 0.5)  # items\n  return total'
    found = code_tokens(text, PYTHON)
    names = [token for token, is_name in zip(found.tokens, found.is_name_N, strict=True) if is_name]
    assert names == ["add", "items", "total", "items", "total"]
    assert " ".join(found.tokens) == (
        "def add self items : Sum of items . total = sum items . values 0 . 5 return total"
    )
    java = code_tokens('int f(int a) { /* a */ String s = "a // b"; return a; } // a', SLASHES)
    assert " ".join(java.tokens) == "int f int a { String s = a / / b ; return a ; }"
    assert [t for t, n in zip(java.tokens, java.is_name_N, strict=True) if n] == ["f", "a", "s", "a"]
    assert not code_tokens("the words of a text", PROSE).is_name_N.any()
    assert code_tokens("f(a, b,)", PYTHON).tokens == code_tokens("f(\n  a,\n  b,\n)", PYTHON).tokens == list("fab")


def test_renaming_must_be_consistent():
    text = "total = 0\nfor item in items:\n  total = total + item * weight\nresult = total / count(items)\nif result:\n"
    text += "  items.append(result)\n"
    consistent = re.sub(r"\b(total|item|items|weight|result)\b", lambda m: f"x_{m[1]}", text)
    mixed = text.replace("total + item", "item + total")
    problem = EvaluationSet(
        name="s", problems=(Problem(id="1", parts=(Part(name="code", text=text, family=PYTHON),)),)
    )
    index = Index([problem], kinds=["renamed"])
    assert [match.kind for match in index.matches("import os\n" + consistent, PYTHON)] == ["renamed"]
    assert index.matches(mixed, PYTHON) == [] and index.matches(text.replace("*", "-"), PYTHON) == []


@pytest.mark.parametrize(
    ("path", "text", "family"),
    [
        ("a/b.py", "", "python"), ("a/b.py::f@3", "", "python"), ("B.java", "", "slashes"), ("x.cs", "", "slashes"),
        ("x.rb", "", "hashes"), ("README.md", "def f(x):", "prose"), ("17", "def f(x):\n    return 1", "python"),
        ("17", "int f(int x) { return x; }", "slashes"), ("17", "def f(x)\n  x + 1\nend", "hashes"),
        ("17", "The words of a text; and more.", "prose"), ("17", "import java.util.List;\nclass A {}", "slashes"),
    ],
)  # fmt: skip
def test_families(path, text, family):
    assert family_of(path, text) == family


def write_rows(path, rows, *, compressed=False):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if compressed else text.encode())


@pytest.fixture
def folders(tmp_path):
    """Small files in the publishers' layouts."""
    words = iter(f"word{number}" for number in range(10**6))

    def prose(count=30):
        return " ".join(next(words) for _ in range(count))

    code = "def f{0}(a):\n    x = a + {0}\n    for i in range({0}):\n        x += i * a - {0}\n    return [x, {0}, a]\n"
    for name in ("humaneval", "humaneval_infilling", "mbpp", "mtpb", "boolq"):
        (tmp_path / name).mkdir()
    write_rows(tmp_path / "humaneval/HumanEval.jsonl.gz", [
        {"task_id": f"HumanEval/{i}", "prompt": f"def f{i}(a):\n    ''' {prose()} '''\n",
         "canonical_solution": code.format(i).partition("\n")[2], "test": f"check(f{i})"} for i in (1, 2)
    ], compressed=True)  # fmt: skip
    program = code.format(77).split("\n")
    write_rows(tmp_path / "humaneval_infilling/HumanEval-SingleLineInfilling.jsonl.gz", [
        {"task_id": f"SingleLineInfilling/HumanEval/0/L{i}", "prompt": "\n".join(program[: i + 1]) + "\n",
         "canonical_solution": program[i + 1] + "\n", "suffix": "\n".join(program[i + 2 :])} for i in range(3)
    ], compressed=True)  # fmt: skip
    write_rows(tmp_path / "mbpp/mbpp.jsonl", [
        {"task_id": i, "text": prose(), "code": code.format(i).replace("\n", "\r\n"), "test_list": ["assert f(1)"]}
        for i in (10, 11, 600, 601)
    ])  # fmt: skip
    row = {"task_id": 12, "prompt": prose(), "code": code.format(12), "test_list": ["assert f(1)"]}
    (tmp_path / "mbpp/sanitized-mbpp.json").write_text(json.dumps([row]))
    write_rows(tmp_path / "mtpb/mtpb.jsonl", [{"id": 1, "prompts": [prose(10), prose(10)]}])
    sentences = [{"sentence": f"question: {prose(9)}\npassage: {prose()}", "label": "True"} for _ in range(2)]
    (tmp_path / "boolq/dev.json").write_text(json.dumps(sentences))
    write_rows(tmp_path / "own.jsonl", [{"q": prose(), "a": "short"}])
    return tmp_path


def all_sets(folders):
    names = ("humaneval", "humaneval_infilling", "mbpp", "mtpb", "boolq")
    own = {"own": (str(folders / "own.jsonl"), ("q", "a"))}
    return evaluation_sets(**{name: folders / name for name in names}, json_lines=own)


def test_sets_are_read_from_the_official_files(folders):
    found = {one.name: one for one in all_sets(folders)}
    ids = {name: [problem.id for problem in one.problems] for name, one in found.items()}
    assert ids == {
        "humaneval": ["HumanEval/1", "HumanEval/2"],
        "humaneval_infilling": [f"SingleLineInfilling/HumanEval/0/L{i}" for i in range(3)],
        "mbpp": ["11", "600"], "mbpp_sanitized": ["12"], "mtpb": ["1"], "boolq": ["1", "2"], "own": ["1"],
    }  # fmt: skip
    infilling = found["humaneval_infilling"].problems
    assert len({part.text for problem in infilling for part in problem.parts}) == 2  # one program, one solution
    assert "\r" not in found["mbpp"].problems[0].parts[1].text
    assert found["boolq"].problems[0].parts[0].text.startswith("word")


def test_the_report_counts_problems_once_and_names_records(folders, tmp_path):
    sets = all_sets(folders)
    found = {one.name: one for one in sets}
    infilling = found["humaneval_infilling"].problems[0].parts[0].text
    mbpp, sanitized = found["mbpp"].problems[0].parts, found["mbpp_sanitized"].problems[0].parts
    corpus = [
        ("clean.py", "import os\n\n\ndef main():\n    print(os.getcwd())\n"),
        ("leak.py", "import os\n\n" + infilling),
        *((f"copy{number}.py", mbpp[1].text + "\n# " + mbpp[0].text) for number in range(12)),
        ("README.md", "See  " + "  ".join(sanitized[0].text.split())),
        ("renamed.py", sanitized[1].text.replace("x", "other").replace("f12", "g")),
        ("own", json.dumps({"q": found["own"].problems[0].parts[0].text})),
    ]
    made = report(iter(corpus), sets)
    infill = made["sets"]["humaneval_infilling"]
    assert infill["found"] == {"verbatim": 3, "reformatted": 0, "renamed": 0} and infill["share"] == 1.0
    assert [leak["records"] for leak in infill["leaks"]] == [["leak.py"]] * 3
    (leak,) = made["sets"]["mbpp"]["leaks"]
    assert (leak["problem"], leak["kind"], leak["share"], leak["num_records"]) == ("11", "verbatim", 1.0, 12)
    assert leak["records"] == [f"copy{number}.py" for number in range(10)]
    (leak,) = made["sets"]["mbpp_sanitized"]["leaks"]  # its question re-spaced is stricter than its solution renamed
    assert (leak["part"], leak["kind"], leak["records"]) == ("question", "reformatted", ["README.md"])
    assert made["sets"]["own"]["found"]["verbatim"] == 1 and made["sets"]["mtpb"]["leaks"] == []
    assert made["corpus"]["records"] == len(corpus)
    assert made["corpus"]["bytes"] == sum(len(text) for _, text in corpus)
    contamination.write(made, tmp_path / "out" / "contamination.json")
    assert json.loads((tmp_path / "out" / "contamination.json").read_text()) == made
    text = (tmp_path / "out" / "contamination.txt").read_text()
    assert re.search(r"^humaneval_infilling +3 +3 +3 +0 +0 +100.00 %$", text, re.M), text
    assert "mbpp/11: solution, verbatim, 100 %, in copy0.py, copy1.py, copy2.py ..." in text


def test_texts_too_short_are_no_leak_and_are_counted():
    parts = (Part(name="a", text="return a + b", family=PYTHON),)
    sets = [EvaluationSet(name="s", problems=(Problem(id="1", parts=parts),))]
    made = report([("x.py", "def f(a, b):\n    return a + b\n")], sets)
    assert made["sets"]["s"] == {
        "problems": 1, "judged": 0, "found": dict.fromkeys(KINDS, 0), "share": 0.0, "leaks": []
    }  # fmt: skip
    assert report([], sets)["corpus"]["records"] == 0


def test_a_record_is_tested_by_itself():
    text = FUNCTIONS[max(FUNCTIONS, key=lambda name: len(FUNCTIONS[name]))]
    index = Index([as_set({"a": text})])
    assert index.first_problem(text, PYTHON) == "functions/a (verbatim)"
    assert index.first_problem(renamed(text, random.Random(0)), PYTHON) == "functions/a (renamed)"
    assert index.first_problem("x = 1\n", PYTHON) == "" == index.first_problem("", PYTHON)
    strict = Index([as_set({"a": text})], kinds=["verbatim", "reformatted"])
    assert strict.first_problem(renamed(text, random.Random(0)), PYTHON) == ""


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "boolq/dev.json").unlink(), r"no dev\.json in .*boolq"),
        (lambda folder: (folder / "boolq/dev.json").write_text("[{"), r"dev\.json is damaged"),
        (lambda folder: (folder / "mtpb/mtpb.jsonl").write_text('{"id": 1}\n'), "row 1 has no field prompts"),
        (lambda folder: (folder / "humaneval/HumanEval.jsonl.gz").write_bytes(b"x"), "is damaged"),
        (lambda folder: (folder / "own.jsonl").unlink(), r"no own\.jsonl in"),
    ],
)
def test_files_that_are_missing_or_damaged(folders, damage, message):
    damage(folders)
    with pytest.raises(UserError, match=message) as caught:
        all_sets(folders)
    assert "\n" not in str(caught.value)


def test_cached_records_are_read_back_as_text(tmp_path):
    vocabulary = train_vocabulary([text for _, text in CORPUS[:40]], 700, 10, tmp_path)
    texts = [text[:2000] for _, text in CORPUS[:5]]
    split = [{"id": str(i), "targets": vocabulary.encode(text)} for i, text in enumerate(texts)]
    assert list(contamination.cached_records(split, vocabulary)) == [(str(i), text) for i, text in enumerate(texts)]


@pytest.mark.slow
def test_pytask_cl_is_an_evaluation_set():
    from codegen2_jax.data import pytask_cl

    sets = evaluation_sets(pytask_cl=True)
    assert [one.name for one in sets] == list(pytask_cl.TASKS)
    examples = pytask_cl.examples_of("pytask_generate").examples
    assert len(sets[0].problems) == len(examples["valid"]) + len(examples["test"])


@needs_data
def test_the_real_evaluation_sets():
    sets = evaluation_sets(
        codetask_cl=SHARED / "codetask_cl", humaneval_infilling=SHARED / "humaneval_infilling",
        mbpp=SHARED / "mbpp", mtpb=SHARED / "mtpb", boolq=SHARED / "boolq",
    )  # fmt: skip
    sizes = {one.name: len(one.problems) for one in sets}
    assert sizes == {
        "codetask_concode": 400, "codetask_translate": 999, "codetask_summarize": 1400, "codetask_refine": 1000,
        "humaneval_infilling": 8652, "mbpp": 590, "mbpp_sanitized": 300, "mtpb": 115, "boolq": 3270,
    }  # fmt: skip
    made = report(CORPUS, sets)
    print(contamination.table(made))
    assert all(one["leaks"] == [] for one in made["sets"].values())  # the library holds none of them
    assert all(one["judged"] >= 0.9 * one["problems"] for one in made["sets"].values())
