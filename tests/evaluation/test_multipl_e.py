"""HumanEval in other languages: problems of MultiPL-E's form, where answers end, and what passes."""

import gzip
import json

import pytest
from toy_decoders import byte_vocabulary

from codegen2_jax.data.multipl_e import LANGUAGES, multipl_e
from codegen2_jax.errors import UserError
from codegen2_jax.evaluation.code_benchmarks import MultiPLE
from codegen2_jax.evaluation.subject import Call
from codegen2_jax.models.codegen import CodeGenConfig
from codegen2_jax.models.decoder_only import DecoderOnly
from codegen2_jax.sandbox import languages
from codegen2_jax.sandbox.runner import Sandbox
from codegen2_jax.training.tracking import Tracker

JAVA = "import java.util.*;\nimport org.javatuples.*;\nclass Problem {\n"
# Language, prompt, answer as a model writes it, stop tokens, tests.
PROBLEMS = {
    "java": (
        JAVA + "    // Doubles.\n    public static long twice(long n) {\n",
        "        return 2 * n;\n    }\n\n    static void more() {\n",
        ["\n    }\n"],
        "    }\n    public static void main(String[] args) {\n    assert(twice(3L) == (6L));\n    }\n\n}\n",
    ),
    "js": (
        "//Doubles.\nfunction twice(n){\n",
        "  return 2 * n;\n}\n// and so on\nfoo(",
        ["\nfunction ", "\n/*", "\n//", "\nconsole.log"],
        "const assert = require('node:assert');\n\n\nfunction test() {\n  let candidate = twice;\n"
        "  assert.deepEqual(candidate(3),6);\n}\n\ntest();",
    ),
    "rb": (
        "# Doubles.\ndef twice(n)\n",
        "  2 * n\nend\n\nputs twice(",
        ["\nclass", "\ndef", "\n#", "\n\n"],
        "require 'test/unit'\nclass TestHumanEval < Test::Unit::TestCase\n  def test_twice\n"
        "    candidate = method(:twice)\n    assert_equal(6, candidate.call(3))\n  end\nend\n",
    ),
    "cs": (
        "using System;\nusing System.Numerics;\nusing System.Diagnostics;\nusing System.Collections.Generic;\n"
        "using System.Linq;\nusing System.Text;\nusing System.Security.Cryptography;\nclass Problem {\n"
        "    // Doubles.\n    public static long Twice(long n) {\n",
        "        return 2 * n;\n    }\n\n    static void More() {\n",
        ["\n    }\n"],
        "    }\n    public static void Main(string[] args) {\n    Debug.Assert(Twice((3L)) == (6L));\n    }\n\n}\n",
    ),
}  # fmt: skip


def rows_of(key, count=2, **changes):
    prompt, _, stop, tests = PROBLEMS[key]
    fields = {"language": key, "prompt": prompt, "tests": tests, "stop_tokens": stop, "doctests": "transform"}
    return [{"name": f"HumanEval_{n}_twice", **fields, **changes} for n in range(count)]


def write(path, rows):
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


@pytest.mark.parametrize("language", PROBLEMS)
def test_right_answers_pass_in_every_language(language, tmp_path):
    try:
        languages.find(LANGUAGES[language])
        with Sandbox(workers=1):
            pass
    except UserError as error:
        pytest.skip(str(error))
    benchmark = MultiPLE(file=write(tmp_path / "problems.jsonl", rows_of(language)))
    first, second = benchmark.problems()
    right = benchmark.cut(first, PROBLEMS[language][1])
    assert right.strip().endswith(("n", ";", "}", "end")) and "more" not in right.lower()
    place = tmp_path / "out" / "multipl_e"
    place.mkdir(parents=True)
    answers = [(first.id, right), (second.id, right.replace("2", "3"))]
    write(place / "samples.jsonl", [{"task_id": id, "completion": text} for id, text in answers])
    tracker = Tracker(tmp_path, quiet=True)
    call = Call(directory=tmp_path / "out", subject=None, step="score", tracker=tracker, workers=2)
    result = benchmark.run(call)
    figures = result["temperatures"]["0"]
    assert result["metrics"]["pass@1"]["value"] == 50.0 and result["warnings"] == []
    assert figures["outcomes"] == {"failed": 1, "passed": 1}


def test_answers_end_at_their_own_problems_stop_tokens(tmp_path):
    """What all have in common ends them while they are written."""
    rows = rows_of("js", 1) + [rows_of("js", 2)[1] | {"stop_tokens": ["\n//", "\nlet"]}]
    benchmark = MultiPLE(file=write(tmp_path / "problems.jsonl.gz", rows))
    problems = benchmark.problems()

    class Subject:
        vocabulary = byte_vocabulary(tmp_path)
        sizes = {"d_model": 8, "d_ff": 8, "num_layers": 1, "num_heads": 1, "head_dim": 8, "rotary_dim": 4}
        model, facts = DecoderOnly(CodeGenConfig(vocab_size=vocabulary.size, **sizes)), {}

        def names_of(self, ids):
            return list(map(str, ids))

    work = benchmark.work(Subject(), dict(enumerate(problems)), benchmark.settings(0.0))
    assert work.header["stop"] == ("\n//",)
    answer = "  return 1;\n}\nlet x = 1;\nconsole.log(x);"
    cut = [benchmark.cut(problem, answer) for problem in problems]
    assert cut == ["  return 1;\n}\nlet x = 1;", "  return 1;\n}"]


def test_what_a_file_lacks_is_told(tmp_path):
    both = write(tmp_path / "both.jsonl", rows_of("js") + rows_of("rb", 1))
    assert [one.language for one in multipl_e(both, "rb")] == ["ruby"]
    tuples = rows_of("java", 1, prompt=JAVA + "    public static Pair<Long, Long> f(long n) {\n")
    with_import, without = (
        multipl_e(write(tmp_path / "java.jsonl", rows))[0].head for rows in (tuples, rows_of("java", 1))
    )
    assert "org.javatuples" in with_import and "org.javatuples" not in without
    for rows, language, message in [
        (rows_of("js") + rows_of("rb", 1), None, "problems in js, rb; set MULTIPL_E_LANGUAGE"),
        (rows_of("js"), "java", "no problem in java, only in js"),
        (rows_of("js", 1, language="lua"), None, "'lua' cannot be run here; choose one of java, js, rb, cs"),
        (rows_of("js", 1) * 2, None, "HumanEval_0_twice twice"),
        (rows_of("js", 1, stop_tokens="x"), None, "row 1 has no field stop_tokens of type list"),
        ([5], None, "row 1 is a int, not an object"),
    ]:
        with pytest.raises(UserError, match=message):
            multipl_e(write(tmp_path / "bad.jsonl", rows), language)
    with pytest.raises(UserError, match="is no file"):
        multipl_e(tmp_path / "nothing.jsonl")
