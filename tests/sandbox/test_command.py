"""`python -m codegen2_jax.sandbox`: a file of programs in, verdicts and a table out."""

import json

import pytest

from codegen2_jax.sandbox import __main__ as door
from codegen2_jax.sandbox import languages

GOOD = {"name": "good", "solution": "def f():\n    return 1", "tests": "assert f() == 1", "entry_point": "f"}
BAD = {**GOOD, "name": "bad", "solution": "def f():\n    return 2"}


def write(path, *records):
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n")
    return str(path)


def test_a_file_is_judged(isolated, tmp_path, capsys):
    file = write(tmp_path / "samples.jsonl", GOOD, BAD, {"name": "out", "solution": "print(3)", "style": "output"})
    assert door.main([file, "--workers", "1", "--cpu_seconds", "2"]) == 0
    verdicts = [json.loads(line) for line in (tmp_path / "samples.verdicts.jsonl").read_text().splitlines()]
    assert [(v["name"], v["outcome"]) for v in verdicts] == [("good", "passed"), ("bad", "failed"), ("out", "passed")]
    assert verdicts[2]["stdout"] == "3\n" and all(v["isolated"] for v in verdicts)
    said = capsys.readouterr().out
    assert "passed" in said and "66.7 %" in said and "wrote" in said and "WITHOUT" not in said
    out = tmp_path / "v.jsonl"
    assert door.main([file, "--out", str(out), "--memory_mib", "128"]) == 0 and out.exists()


def test_the_walls_are_tested(isolated, capsys):
    assert door.main(["--self_test"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 8 and all(line.startswith("held") for line in lines)


@pytest.mark.parametrize(
    ("records", "flags", "message"),
    [
        ([{**GOOD, "entrypoint": "f"}], [], "line 1 has the unknown field 'entrypoint'"),
        ([GOOD, {"name": "x"}], [], "line 2 lacks the field 'solution'"),
        ([[1]], [], "line 1 is a list"),
        ([], [], "holds no programs"),
        ([GOOD], ["--cpu_seconds", "-1"], "cpu_seconds=-1.0 must be positive"),
        ([GOOD], ["--workers", "0"], "workers=0"),
        ([GOOD], ["--language", "cobol"], "invalid choice: 'cobol'"),
        ([GOOD], ["--out", "{file}"], "is the file with the programs"),
        ([GOOD], ["--out", "{file}/x"], "cannot write"),
        ([GOOD], ["--self_test"], "judges no program"),
    ],
)
def test_mistakes_are_one_line(records, flags, message, isolated, tmp_path, capsys):
    file = write(tmp_path / "x.jsonl", *records)
    assert door.main([file, *(flag.format(file=file) for flag in flags)]) == 2
    said = capsys.readouterr().err
    assert message in said and said.startswith("error: ") and said.count("\n") == 1


def test_a_line_that_nests_without_end_is_one_line(tmp_path, capsys):
    (tmp_path / "deep.jsonl").write_text("[" * 100_000)
    assert door.main([str(tmp_path / "deep.jsonl")]) == 2
    said = capsys.readouterr().err
    assert "line 1 is no JSON" in said and said.startswith("error: ") and said.count("\n") == 1


def test_a_language_that_is_not_installed_is_refused_at_once(isolated, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    languages.find.cache_clear()
    try:
        file = write(tmp_path / "x.jsonl", {**GOOD, "style": "program", "language": "csharp"})
        assert door.main([file]) == 2
        assert "no mono on PATH to run csharp programs; install" in capsys.readouterr().err
    finally:
        languages.find.cache_clear()


def test_files_that_cannot_be_read(isolated, tmp_path, capsys):
    (tmp_path / "x.jsonl").write_bytes(b"\xff")
    (tmp_path / "y.jsonl").write_text("{")
    for name, message in (("x", "cannot read"), ("y", "line 1 is no JSON"), ("z", "cannot read")):
        assert door.main([str(tmp_path / f"{name}.jsonl")]) == 2
        assert message in capsys.readouterr().err
    assert door.main([]) == 2
    assert "no file with programs is given" in capsys.readouterr().err
