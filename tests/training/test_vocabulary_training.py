"""A vocabulary learned from a user's files: only from what is trained on, and the same every time."""

import json

import pytest

from codegen2_jax.data.documents import DocumentTask
from codegen2_jax.data.vocabulary import Vocabulary
from codegen2_jax.errors import UserError
from codegen2_jax.training.vocabulary_training import VocabularyTraining

MASKS = 5
CONTROLS = 38 + 4 + 2 + MASKS  # runs of blanks, dummies, <sep> and <eom>, masks
FILES = 40


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("src")
    for number in range(FILES):
        text = f"def area_{number}(width, height):\n    return width * height  # {number}\n" * 3
        (folder / f"f{number:02}.py").write_text(text)
    return DocumentTask(
        name="own", kind="directory", path=str(folder), extensions=("py",), min_bytes=1, near_duplicates=None,
        valid_per_mille=250,
    )  # fmt: skip


def job(directory, task, size=256 + 1 + CONTROLS + 20):
    return VocabularyTraining(model_dir=str(directory), documents=(task,), size=size, num_masks=MASKS)


def test_it_learns_the_layout_of_codegen2_from_the_documents(task, tmp_path, capsys):
    job(tmp_path / "a", task).run(config_text="one = 1")
    vocabulary = Vocabulary.from_directory(tmp_path / "a")
    said = capsys.readouterr().out
    assert f"wrote {vocabulary.size:,} entries" in said and vocabulary.digest in said
    assert vocabulary.size == 256 + 1 + CONTROLS + 20 and vocabulary.num_sentinels == MASKS
    assert vocabulary.sentinel_id(0) == vocabulary.size - 1 and vocabulary.eom_id == vocabulary.sep_id + 1
    assert vocabulary.eos_id == 256 + 20, "learned tokens stand before the control tokens"
    text = "def area_7(width, height):\n    return width"
    assert len(vocabulary.encode(text)) < len(text) / 1.5 and vocabulary.decode(vocabulary.encode(text)) == text
    assert (tmp_path / "a" / "config.gin").read_text() == "one = 1"

    job(tmp_path / "b", task).run(config_text="one = 1")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_held_out_documents_are_not_read(task, tmp_path):
    texts = list(job(tmp_path, task)._texts())
    assert 0 < len(texts) < FILES and all("area_" in text for text in texts)
    merges = lambda directory: json.loads((directory / "tokenizer.json").read_text())["model"]["merges"]  # noqa: E731
    job(tmp_path / "some", task).run(config_text="")
    seen = {text.split("area_")[1].split("(")[0] for text in texts}
    assert len(seen) == len(texts), "each file once"
    assert merges(tmp_path / "some"), "something was learned"


def test_a_directory_belongs_to_one_configuration(task, tmp_path):
    job(tmp_path, task).run(config_text="one = 1")
    before = (tmp_path / "tokenizer.json").read_bytes()
    with pytest.raises(UserError, match="another configuration"):
        job(tmp_path, task).run(config_text="one = 2")
    assert (tmp_path / "tokenizer.json").read_bytes() == before


def test_what_cannot_be_learned_is_refused(task, tmp_path, capsys):
    with pytest.raises(UserError, match="at least one mask and"):
        job(tmp_path / "a", task, size=256).run(config_text="")
    with pytest.raises(UserError, match="give only .* entries, size=5000 was asked for"):
        job(tmp_path / "b", task, size=5000).run(config_text="")
    with pytest.raises(UserError, match="reads no batch"):
        job(tmp_path, task).show_batch()
    capsys.readouterr()
    job(tmp_path, task).dry_run()
    assert capsys.readouterr().out == "own: 1 shards\n"
