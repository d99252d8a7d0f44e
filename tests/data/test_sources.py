"""Sources: stable splits, strict reading, errors that name file and line."""

import collections
import hashlib

import pytest

from codegen2_jax.data import sources
from codegen2_jax.errors import UserError


def test_a_path_decides_the_split():
    assert {path: sources.split_of(path) for path in GOLDEN_SPLITS} == GOLDEN_SPLITS
    counts = collections.Counter(sources.split_of(f"package/module_{i}.py") for i in range(5000))
    assert set(counts) == set(sources.SPLITS)
    assert counts["train"] / 5000 == pytest.approx(0.86, abs=0.02)
    assert counts["valid"] / 5000 == pytest.approx(0.07, abs=0.02)


# Written down: changing the hash would move test files into a pretrained model's corpus.
GOLDEN_SPLITS = {
    "cpython/argparse.py": "train",
    "cpython/calendar.py": "test",
    "cpython/heapq.py": "train",
    "cpython/json/tool.py": "valid",
    "cpython/shlex.py": "test",
}


def test_stable_hash_is_sha256():
    assert sources.stable_hash("a") == int(hashlib.sha256(b"a").hexdigest()[:16], 16)


def test_the_library_has_no_tests_and_only_what_every_installation_has():
    files = sources.standard_library()
    paths = [file.path for file in files]
    assert paths == sorted(set(paths)) and "cpython/json/decoder.py" in paths and len(paths) > 300
    folders = {part for path in paths for part in path.split("/")[:-1]}
    assert not folders & {"test", "tests", "idlelib", "site-packages", "tkinter", "distutils", "encodings", "lib2to3"}
    assert all(file.licence == "PSF-2.0" and "\r" not in file.text for file in files)


def test_a_library_folder_is_read_in_order(tmp_path):
    for name in ("b.py", "a.py", "tests/t.py", "tkinter/x.py", "_sysconfigdata__linux.py", "sub/c.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x = 1\r\n")
    (tmp_path / "latin.py").write_bytes(b"x = '\xe9'\n")
    files = sources.standard_library(tmp_path)
    assert [file.path for file in files] == ["cpython/a.py", "cpython/b.py", "cpython/sub/c.py"]
    assert files[0].text == "x = 1\n"
    optional = sources.standard_library(tmp_path, optional=True)
    assert "cpython/tkinter/x.py" in [file.path for file in optional]
    with pytest.raises(UserError, match=r"no Python file under .*nowhere"):
        sources.standard_library(tmp_path / "nowhere")


def test_lines_are_split_at_line_feeds_only(tmp_path):
    file = tmp_path / "lines.txt"
    file.write_bytes("a\x0cb\nc\u2028d\r\n\ne".encode())
    assert sources.read_lines(file) == ["a\x0cb", "c\u2028d\r", "", "e"]
    file.write_bytes(b"a\n\n")
    assert sources.read_lines(file) == ["a", ""]
    file.write_bytes(b"")
    assert sources.read_lines(file) == []


def test_text_that_is_not_utf8_is_an_error_with_its_line(tmp_path):
    file = tmp_path / "lines.txt"
    file.write_bytes(b"fine\nfine\nno \xff\n")
    with pytest.raises(UserError, match=r"lines\.txt line 3 is not UTF-8"):
        sources.read_lines(file)


def test_parallel_files_of_different_length_are_an_error(tmp_path):
    (tmp_path / "a.java").write_text("one\ntwo\n")
    (tmp_path / "a.cs").write_text("one\n")
    with pytest.raises(UserError, match=r"a\.java has 2 lines but .*a\.cs has 1"):
        sources.read_parallel(tmp_path / "a.java", tmp_path / "a.cs")


def test_malformed_rows_are_rejected_with_file_and_line(tmp_path):
    file = tmp_path / "rows.json"
    lines = ['{"nl": "a", "code": "b"}', '{"nl": "a"', "", '{"nl": "a"}', "[1]", '{"nl": "a", "code": 3}',
             '{"nl": ["a"], "code": "b"}', '{"nl": "a", "code": ["b", 1]}']  # fmt: skip
    file.write_text("\n".join(lines))
    rows, rejected = sources.read_json_lines(file, ("nl", "code"))
    assert [number for number, _ in rows] == [1, 7]
    assert [(one.file, one.line) for one in rejected] == [(str(file), line) for line in (2, 4, 5, 6, 8)]
    assert "malformed JSON" in rejected[0].reason and rejected[1].reason == "no field code"


def test_what_no_tokeniser_takes_is_rejected_and_a_byte_order_mark_costs_no_row(tmp_path):
    file = tmp_path / "rows.json"
    lines = ['{"nl": "first", "code": "b"}', '{"nl": "\\ud800", "code": "b"}', "[" * 100_000, "\r",
             '{"nl": ["a", "\\udc00"], "code": "b"}', '{"nl": "\\ud83d\\ude00 \u2028", "code": "b"}\r']  # fmt: skip
    file.write_bytes("\n".join(lines).encode("utf-8-sig"))
    rows, rejected = sources.read_json_lines(file, ("nl", "code"))
    assert [(number, row["nl"]) for number, row in rows] == [(1, "first"), (6, "\N{GRINNING FACE} \u2028")]
    assert [(one.line, one.reason) for one in rejected] == [
        (2, "field nl holds half of a surrogate pair"),
        (3, "malformed JSON: nested too deeply"),
        (5, "field nl holds half of a surrogate pair"),
    ]
    with pytest.raises(UserError, match=f"{tmp_path} cannot be read: Is a directory"):
        sources.read_lines(tmp_path)


@pytest.mark.parametrize(
    ("directory", "message"),
    [(None, "CODE_DIR is not set, so x.txt cannot be read"), ("", "CODE_DIR is not set"), ("/nowhere", "/nowhere/x")],
)
def test_a_missing_file_names_the_setting(directory, message):
    with pytest.raises(UserError, match=message) as caught:
        sources.require_file(directory, "x.txt", setting="CODE_DIR")
    assert "CODE_DIR" in str(caught.value) and "\n" not in str(caught.value)


def test_file_digest(tmp_path):
    (tmp_path / "x").write_bytes(b"abc" * 1_000_000)
    assert sources.file_digest(tmp_path / "x") == hashlib.sha256(b"abc" * 1_000_000).hexdigest()
