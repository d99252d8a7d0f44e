"""The report of finished runs: its numbers are those of scores.json, its page stands alone, its errors are one line."""

import base64
import csv
import io
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from codegen2_jax import report
from codegen2_jax.errors import UserError
from codegen2_jax.reporting import finished_runs, html_page, paper_table, tables

TASKS = ("toy_generate", "toy_translate", "toy_refine")
# The golden matrix of the metrics' tests: forget_paper 2.0, average 59.3333 (specification, section 5).
BLEU = [[5.0, 10.0, 20.0], [50.0, 12.0, 22.0], [52.0, 60.0, 25.0], [45.0, 63.0, 70.0]]
COPY, CEILING = [0.0, 20.0, 60.0], [55.0, 62.0, 71.0]


def record_of(method="pool", seed=0, bleu=BLEU, **changes):
    """The contents of a small scores.json; None is a cell that was not measured."""
    match = [[cell and cell / 10 for cell in row] for row in bleu]
    matrices = {"bleu": bleu, "exact_match": match}
    copy = {"bleu": COPY, "exact_match": [0.0] * 3}
    return {
        "stream": list(TASKS),
        "complete": True,
        "method": method,
        "walk": "sequential",
        "seed": seed,
        "init_from": "toy",
        "weights_digest": "w" * 64,
        "config_digest": f"{seed}{method}",
        "data_digest": "d" * 64,
        "decoding": "greedy",
        "eval_examples": None,
        "versions": {"codegen2_jax": "0"},
        "scorers": {"bleu": ["codet5_bleu"] * 3, "exact_match": ["exact_match"] * 3},
        "leave_out": [task for task in changes.get("stream", TASKS) if task.endswith("_refine")],
        "splits": {"valid": matrices, "test": matrices},
        "baselines": {"copy": {"valid": copy, "test": copy}},
        "summary": {},
        "diagnostics": {},
        "cost": {
            "trainable_parameters": 1234,
            "parameters": 5678,
            "prompt_tokens": 4,
            "train_examples_seen": 90,
            "wall_seconds": 120.0,
        },
        **changes,
    }


def pool_diagnostics():
    """Three stages of a pool of six keys, two a task."""
    assignment = [[1.0 if key // 2 == task else 0.0 for key in range(6)] for task in range(3)]
    usage = [[3.0 if key // 2 == task else 1.0 for key in range(6)] for task in range(3)]
    points = [[0.1 * key, -0.1 * key] for key in range(6)]
    queries = {"points": [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], "task": [0.0, 1.0, 2.0], "explained": [0.5, 0.25]}
    recall = [[1.0, None, None], [0.75, 1.0, None], [0.5, 0.25, 1.0]]
    return {
        "key_usage": [usage] * 3,
        "assignment": [assignment] * 3,
        "key_plane": [points] * 3,
        "query_plane": [queries, None, None],
        "own_key_recall": recall,
        "own_key_limit": [[1.0], [0.5, 1.0], [0.5, 0.5, 1.0]],
        "query_cosine": [[[0.9, 0.1, 0.2], [0.1, 0.8, 0.3], [0.2, 0.3, 0.7]]] * 3,
        "nearest_mean_accuracy": [0.75] * 3,
    }


METRICS = [
    {"step": 10, "time": 1.0, "task": "toy_generate", "loss": 3.5},
    {"step": 20, "time": 2.0, "task": "toy_generate", "valid_loss": 3.25, "valid_bleu": 12.5},
    {"step": 30, "time": 3.0, "task": "toy_translate", "loss": "nan"},
    {"step": 40, "time": 4.0, "task": "toy_translate", "loss": 2.5},
    {"step": 50, "time": 5.0, "task": "toy_refine", "loss": 1.5},
]


def write_run(directory, record, metrics=METRICS):
    directory.mkdir(parents=True)
    (directory / "scores.json").write_text(json.dumps(record))
    if metrics is not None:
        (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    return directory


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds of a pool, one finetuning run without metrics, one individual run."""
    place = tmp_path_factory.mktemp("runs")
    other = [[cell + 2.0 for cell in row] for row in BLEU]
    individual = [BLEU[0]] + [[CEILING[j] if i == j else None for j in range(3)] for i in range(3)]
    return [
        write_run(place / "pool-0", record_of(diagnostics=pool_diagnostics())),
        write_run(place / "pool-1", record_of(seed=1, bleu=other, diagnostics={"key_usage": [None, None, None]})),
        write_run(place / "tune", record_of("finetune"), metrics=None),
        write_run(place / "alone", record_of("individual", bleu=individual, walk="individual")),
    ]


@pytest.fixture(scope="module")
def written(runs, tmp_path_factory):
    """The report of `runs`: (its directory, the page)."""
    out = tmp_path_factory.mktemp("report") / "deep" / "report"
    page = html_page.write(runs, out)
    assert page == out / "index.html"
    return out, page.read_text(encoding="utf-8")


def rows_of(out, name):
    """The rows of a figure's CSV as {column: text}."""
    return list(csv.DictReader(io.StringIO((out / "figures" / f"{name}.csv").read_text(encoding="utf-8"))))


def csv_of(out, name):
    """A figure's CSV as {first cell: {column: text}}, in order."""
    return {row[next(iter(row))]: row for row in rows_of(out, name)}


def test_the_best_average_is_said_to_leave_out_a_model_for_each_task(written):
    _, page = written
    assert "Highest average test BLEU of one model for all tasks: pool with" in page


def test_the_methods_table_has_the_numbers_of_scores_json(written):
    rows = csv_of(written[0], "methods")
    assert list(rows) == ["pool", "finetune", "individual", "before training", "copy", "constant (not computed)"]
    for j, task in enumerate(TASKS):
        column = f"test bleu {task} (codet5_bleu)"
        assert float(rows["finetune"][column]) == BLEU[3][j]
        assert float(rows["pool"][column]) == BLEU[3][j] + 1.0
        assert float(rows["individual"][column]) == CEILING[j]
        assert float(rows["copy"][column]) == COPY[j]
        assert float(rows["before training"][column]) == BLEU[0][j]
        assert rows["constant (not computed)"][column] == ""
    tune = rows["finetune"]
    assert float(tune["average_bleu (test)"]) == pytest.approx(178 / 3)
    assert float(tune["average_without_toy_refine_bleu (test)"]) == 54.0
    assert float(tune["average_exact_match (test)"]) == pytest.approx(17.8 / 3)
    assert float(tune["forget_paper_bleu (valid; codet5_bleu)"]) == 2.0
    assert float(tune["copy_normalised_vs_individual_bleu (test)"]) == pytest.approx(0.9170, abs=5e-5)
    assert float(rows["copy"]["copy_normalised_vs_individual_bleu (test)"]) == 0.0
    assert float(rows["individual"]["copy_normalised_vs_individual_bleu (test)"]) == 1.0
    assert (tune["trained parameters"], tune["prompt tokens"], tune["examples seen"]) == ("1234", "4", "90")
    assert (tune["wall minutes"], tune["seeds"], rows["pool"]["seeds"]) == ("2.0", "1", "2")
    assert rows["individual"]["forget_paper_bleu (valid; codet5_bleu)"] == "", "an individual run forgets nothing"


def test_the_interval_is_students(written):
    # Table value t(0.975, 2) = 4.302653; values 1, 2, 3 have s = 1.
    found = tables.estimate([1.0, 2.0, 3.0])
    assert found.mean == 2.0 and found.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert tables.estimate([7.0]) == tables.Estimate(7.0, None)
    assert tables.estimate([1.0, math.nan]) is None and tables.estimate([]) is None
    # Two seeds, 2 points apart: s = sqrt(2), so the half width is t(0.975, 1) = 12.7062.
    pool = csv_of(written[0], "methods")["pool"]
    assert float(pool["average_bleu (test), 95 % interval +-"]) == pytest.approx(12.7062, abs=1e-4)
    assert float(pool["forget_paper_bleu (valid; codet5_bleu), 95 % interval +-"]) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("metric", ["bleu", "exact_match"])
@pytest.mark.parametrize("split", ["valid", "test"])
def test_heat_maps_have_every_cell_of_r(written, split, metric):
    scorer = "codet5_bleu" if metric == "bleu" else "exact_match"
    rows = csv_of(written[0], f"finetune_seed0_{split}_{metric}")
    stages = ["before training", "after 1 generate", "after 2 translate", "after 3 refine"]
    assert list(rows) == [*stages, "copy", "constant (not computed)", "individual"]
    for stage, expected in zip(stages, record_of("finetune")["splits"][split][metric], strict=True):
        cells = [float(rows[stage][f"{split} {metric} {task} ({scorer})"]) for task in TASKS]
        assert cells == expected
        assert float(rows[stage][f"average_{metric} ({split})"]) == pytest.approx(np.mean(expected))


def test_cells_that_were_not_measured_are_marked(written):
    out, page = written
    rows = csv_of(out, "individual_seed0_test_bleu")
    assert rows["after 1 generate"]["test bleu toy_translate (codet5_bleu)"] == ""
    assert rows["after 1 generate"]["average_bleu (test)"] == ""
    drawing = re.search(r'aria-label="Heat map of BLEU on the test split for individual, seed 0.*?</svg>', page, re.S)[
        0
    ]
    assert drawing.count("\N{EN DASH}</text>") == 6 + 3 + 3 + 1, "off the diagonal, their averages, the constant row"


def test_bars_curves_cost_and_pool_have_their_numbers(written):
    out, _ = written
    bars = csv_of(out, "forget_paper_bleu_valid")
    assert list(bars) == ["pool", "finetune"]
    assert float(bars["finetune"]["forget_paper_bleu term of toy_generate (valid; codet5_bleu)"]) == 52 - 45
    assert float(bars["finetune"]["forget_paper_bleu term of toy_translate (valid; codet5_bleu)"]) == 60 - 63
    assert float(bars["finetune"]["forget_paper_bleu (valid)"]) == 2.0

    lines = (out / "figures" / "learning_curves.csv").read_text().splitlines()
    assert lines[0] == "run,task,step,training loss,validation loss,validation BLEU"
    assert lines[1:5] == [
        '"pool, seed 0",toy_generate,10,3.5,,',
        '"pool, seed 0",toy_generate,20,,3.25,12.5',
        '"pool, seed 0",toy_translate,40,2.5,,',
        '"pool, seed 0",toy_refine,50,1.5,,',
    ]
    assert float(csv_of(out, "score_against_cost")["finetune"]["trained parameters"]) == 1234

    usage = rows_of(out, "pool_seed0_key_usage")
    assert len(usage) == 3 * 3 * 2
    assert [float(usage[0][f"key {key}"]) for key in range(6)] == [0.3, 0.3, 0.1, 0.1, 0.1, 0.1]
    recall = rows_of(out, "pool_seed0_own_key_recall")
    assert [recall[-2][task] for task in TASKS] == ["0.5", "0.25", "1.0"]
    assert [recall[-1][task] for task in TASKS] == ["0.5", "0.5", "1.0"] and recall[-1]["figure"] == "limit"
    cosine = csv_of(out, "pool_seed0_query_cosine")
    assert [float(cosine["translate"][task]) for task in TASKS] == [0.1, 0.8, 0.3]
    points = rows_of(out, "pool_seed0_plane")
    assert len(points) == 3 + 3 * 6 and points[1]["axis 2"] == "0.4" and points[3]["task"] == "generate"


def test_every_figure_is_a_png_and_has_its_numbers_in_the_page(written):
    out, page = written
    pictures, numbers = ({path.stem for path in out.glob(f"figures/*.{kind}")} for kind in ("png", "csv"))
    assert len(pictures) == 4 * 4 + 3 + 4
    assert numbers == pictures | {"methods", "runs", "ceilings"}
    for path in out.glob("figures/*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
    assert page.count("<svg") == len(pictures) and page.count("<details>") == len(pictures)
    inside = dict(re.findall(r'download="(\w+)\.csv" href="data:text/csv;charset=utf-8;base64,([^"]+)"', page))
    assert set(inside) == numbers
    for name, encoded in inside.items():
        assert base64.b64decode(encoded) == (out / "figures" / f"{name}.csv").read_bytes()


class Structure(HTMLParser):
    """Collects what a page refers to, and checks that its elements close."""

    VOID = {"meta", "link", "br", "wbr", "hr", "img"}

    def __init__(self):
        super().__init__()
        self.open, self.names, self.targets, self.headings, self.unnamed = [], [], [], [], 0

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.names += [found["id"]] if "id" in found else []
        self.targets += [found[name] for name in ("href", "src", "xlink:href") if name in found]
        self.headings += [tag] if re.fullmatch(r"h\d", tag) else []
        self.unnamed += tag == "svg" and not found.get("aria-label")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_stands_alone(written):
    _, page = written
    structure = Structure()
    structure.feed(page)
    assert structure.open == []
    assert len(set(structure.names)) == len(structure.names), "an id is used twice"
    local = [target[1:] for target in structure.targets if target.startswith("#")]
    assert set(local) <= set(structure.names), "a reference leads nowhere"
    assert all(target.startswith(("#", "data:")) for target in structure.targets)
    assert "http" not in page and "<script" not in page and "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    assert structure.headings[0] == "h1" and structure.headings.count("h1") == 1 and structure.unnamed == 0
    assert 'name="viewport"' in page and "prefers-color-scheme: dark" in page


def test_no_figure_is_called_by_the_plain_word(written):
    out, page = written
    texts = [page, *(path.read_text() for path in out.glob("figures/*.csv"))]
    assert not [text for text in texts if re.search("forgetting|forgotten", text, re.IGNORECASE)]


def test_colours_follow_the_scheme(written):
    page = written[1]
    drawings = "".join(re.findall(r"<svg.*?</svg>", page, re.S))
    assert "var(--text)" in drawings and "var(--series-1)" in drawings
    assert not re.search(r"(fill|stroke): #", drawings), "a colour of its own is unreadable on one of the two pages"


def test_the_same_runs_give_the_same_bytes(written, runs, tmp_path):
    out, _ = written
    html_page.write(runs, tmp_path / "again")
    files = {path.relative_to(out) for path in out.rglob("*") if path.is_file()}
    assert files == {path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*") if path.is_file()}
    for name in files:
        assert (out / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


@pytest.mark.parametrize("listing", [None, "no JSON"])
def test_figures_of_an_earlier_report_go_and_other_files_stay(runs, tmp_path, listing):
    figures = tmp_path / "figures"
    html_page.write(runs, tmp_path)
    (figures / "mine.csv").write_text("a\n")
    if listing is not None:
        (figures / html_page.LISTING).write_text(listing)
    before = {path.name for path in figures.iterdir()}
    html_page.write(runs[2:3], tmp_path)
    after = {path.name for path in figures.iterdir()}
    assert "mine.csv" in after
    if listing is None:
        html_page.write(runs[2:3], tmp_path / "alone")
        assert after - {"mine.csv"} == {path.name for path in (tmp_path / "alone" / "figures").iterdir()} < before
    else:
        assert after == before, "without a listing nothing is known to be ours"


def test_what_is_missing_is_said(written, tmp_path):
    page = written[1]
    assert "No metrics.jsonl beside the scores of finetune, seed 0" in page
    found = pool_diagnostics()
    for name in ("key_plane", "query_plane", "own_key_recall"):
        del found[name]
    directory = write_run(tmp_path / "run", record_of(diagnostics=found), metrics=None)
    alone = html_page.write([directory], tmp_path / "out").read_text()
    assert "Keys and queries in a plane: left out, as the scores.json of this run holds no key_plane" in alone
    assert "Own keys found again: left out, as every key belongs to every task" in alone
    assert "copy_normalised_bleu needs the scores of individual finetuning" in alone


def codetask_record(method="pp", copied=(0.09, 18.72, 2.0, 78.06), **changes):
    rows = [[1.0, 2.0, 3.0, 4.0]] * 5
    matrices = {"bleu": rows, "exact_match": rows}
    baselines = {"copy": {split: {"bleu": list(copied)} for split in ("valid", "test")}}
    changes = {"decoding": "beam_5_length_penalty_1", **changes}
    return record_of(method) | {
        "stream": list(paper_table.STREAM),
        "leave_out": ["codetask_refine"],
        "scorers": {"bleu": ["b"] * 4, "exact_match": ["e"] * 4},
        "splits": {"valid": matrices, "test": matrices},
        "baselines": baselines,
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ["nothing in the result files speaks against a comparison"]),
        (
            {"copied": (0.09, 21.83, 2.12, 77.74)},
            ["Not comparable", "codetask_translate 21.83 here and 18.72 there", "codetask_refine 77.74 here"],
        ),
        ({"eval_examples": 64}, ["Not comparable", "only 64 examples of each split"]),
        ({"decoding": "greedy"}, ["Not comparable", "decoding is greedy here, beam 5 there"]),
    ],
)
def test_the_papers_table_stands_beside_its_own_stream(tmp_path, changes, words):
    directory = write_run(tmp_path / "run", codetask_record(**changes))
    page = html_page.write([directory], tmp_path / "out").read_text()
    assert all(word in page for word in words)
    assert "PP + Teacher Forcing (PP-TF)" in page and "44.33" in page
    assert re.findall(r'href="(http[^"]*)"', page) == ["https://arxiv.org/abs/2307.02435"]


def test_the_papers_table_is_not_shown_for_other_streams(written):
    assert "Table 1" not in written[1] and "44.33" not in written[1]


def test_the_papers_averages_add_up():
    for _, _, *bleu, average, _, _, without, _ in paper_table.ROWS:
        assert np.mean(bleu) == pytest.approx(average, abs=0.006)
        assert np.mean(bleu[:3]) == pytest.approx(without, abs=0.006)


def test_equal_methods_that_are_no_seeds_of_one_another_stand_alone(tmp_path):
    records = [record_of(), record_of(), record_of(cost={"trainable_parameters": 1})]
    directories = [write_run(tmp_path / name, record) for name, record in zip("abc", records, strict=True)]
    groups = finished_runs.gather(finished_runs.load(directories))
    assert [group.name for group in groups] == ["pool (a)", "pool (b)", "pool (c)"]
    html_page.write(directories, tmp_path / "out")
    assert (tmp_path / "out" / "figures" / "pool_b_seed0_test_bleu.png").exists()


def test_one_task_alone_has_a_report(tmp_path):
    row = [[1.0], [2.0]]
    alone = {"stream": ["toy_generate"], "scorers": {}, "baselines": {}}
    directory = write_run(tmp_path / "run", record_of(splits={s: {"bleu": row} for s in ("valid", "test")}, **alone))
    page = html_page.write([directory], tmp_path / "out").read_text()
    assert "Left out: it takes two tasks" in page


def test_runs_scored_on_valid_alone_have_a_report(tmp_path):
    record = record_of(diagnostics=pool_diagnostics())
    for part in (record["splits"], record["baselines"]["copy"]):
        del part["test"]
    run = write_run(tmp_path / "valid_only", record)
    page = html_page.write([run], tmp_path / "out").read_text(encoding="utf-8")
    row = csv_of(tmp_path / "out", "methods")["pool"]
    assert float(row["average_bleu (valid)"]) == pytest.approx(178 / 3)
    assert "Highest average valid BLEU" in page and "(test)" not in page
    both = write_run(tmp_path / "both", record_of("finetune"))
    html_page.write([run, both], tmp_path / "two")
    assert "average_bleu (valid)" in csv_of(tmp_path / "two", "methods")["finetune"]  # what all of them have


def test_the_command_writes_into_the_run_and_says_where(tmp_path, capsys, monkeypatch):
    first = write_run(tmp_path / "one", record_of(), metrics=None)
    second = write_run(tmp_path / "two", record_of("finetune"), metrics=None)
    monkeypatch.chdir(tmp_path)
    assert report.main([str(first)]) == 0
    assert capsys.readouterr().out == f"wrote {first}/report/index.html\n"
    assert report.main([str(first), str(second)]) == 0
    assert (tmp_path / "report" / "index.html").exists()


def broken(name):
    """Writes a wrong thing and gives the arguments that name it, with words of the error."""
    cases = {
        "missing": (lambda p: [p / "no"], ["no does not exist", "such as runs/pp_tf"]),
        "file": (lambda p: [write_run(p / "a", record_of()) / "scores.json"], ["is a file"]),
        "empty": (lambda p: (p / "a").mkdir() or [p / "a"], ["holds no scores.json"]),
        "garbled": (lambda p: garbled(p / "a"), ["scores.json cannot be read"]),
        "list": (lambda p: [write_run(p / "a", [1])], ["scores.json"]),
        "foreign": (lambda p: [write_run(p / "a", {"complete": True})], ["lack ['stream', 'splits']"]),
        "unfinished": (
            lambda p: [write_run(p / "a", record_of(complete=False))],
            ["is unfinished", "start its training command again"],
        ),
        "no bleu": (lambda p: [write_run(p / "a", record_of(splits={"valid": {}}))], ["no bleu of the valid split"]),
        "twice": (lambda p: [write_run(p / "a", record_of())] * 2, ["given twice"]),
        "other data": (
            lambda p: [write_run(p / "a", record_of()), write_run(p / "b", record_of(data_digest="x"))],
            ["data_digest is x in", "give only runs of the same files"],
        ),
        "other stream": (
            lambda p: [write_run(p / "a", record_of()), write_run(p / "b", codetask_record())],
            ["stream is codetask_concode"],
        ),
        "other examples": (
            lambda p: [write_run(p / "a", record_of()), write_run(p / "b", record_of(eval_examples=3))],
            ["eval_examples is 3 in", "EVAL_EXAMPLES"],
        ),
        "bad line": (lambda p: bad_line(p / "a"), ["line 2 of metrics.jsonl"]),
        "out is a file": (
            lambda p: [write_run(p / "a", record_of()), "--out", p / "a" / "scores.json"],
            ["is a file", "--out"],
        ),
        "flag": (lambda p: [p, "--uot", "x"], ["unrecognized arguments: --uot", "codegen2_jax.report --help"]),
        "nothing": (lambda p: [], ["RUN_DIR", "codegen2_jax.report --help"]),
    }
    return cases if name is None else cases[name]


def garbled(directory):
    write_run(directory, {})
    (directory / "scores.json").write_text('{"stream": [')
    return [directory]


def bad_line(directory):
    write_run(directory, record_of())
    (directory / "metrics.jsonl").write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    return [directory]


@pytest.mark.parametrize("name", list(broken(None)))
def test_mistakes_are_one_line_and_exit_code_2(tmp_path, capsys, name):
    make, words = broken(name)
    assert report.main([str(argument) for argument in make(tmp_path)]) == UserError.exit_code == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert all(word in printed.err for word in words), printed.err


def test_a_last_line_that_a_kill_cut_short_is_no_error(tmp_path):
    directory = write_run(tmp_path / "run", record_of())
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 60, "lo')
    [run] = finished_runs.load([directory])
    assert len(run.metrics) == len(METRICS)
