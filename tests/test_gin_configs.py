"""Every shipped gin file opens with its header, and the command in the header builds what it says."""

import re
import shlex
from pathlib import Path

import gin
import numpy as np
import pytest

from codegen2_jax import cli
from codegen2_jax.continual.deviations import deviations
from codegen2_jax.models.decoder_only import DecoderOnly

FILES = [path.relative_to(cli.PACKAGED).as_posix() for path in sorted(cli.PACKAGED.rglob("*.gin"))]
# The macros that every run file answers to.
MACROS = {"MODEL_DIR", "SEED", "STREAM", "STEPS_PER_TASK", "EVAL_EXAMPLES", "BATCH_SIZE", "TOP_K", "POOL_PRESET"}
MACROS |= {"INIT_FROM", "CODETASK_CL_DIR"}
EVALUATIONS = sorted(cli.run_files("evaluate"))
COMMANDS = ("codegen2_jax.train", "codegen2_jax.evaluate", "codegen2_jax.precompile")
RUN_FIELDS = ["Run", "Expect", "Required", "Often changed"]


def header(name: str) -> list[str]:
    """The comment lines that a file opens with, without their marks."""
    lines = (cli.PACKAGED / name).read_text(encoding="utf-8").splitlines()
    count = next((index for index, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return [line.removeprefix("#").strip() for line in lines[:count]]


def fields(name: str) -> dict[str, str]:
    """The `Field: text` lines of a header, in their order."""
    matches = (re.fullmatch(rf"({'|'.join(RUN_FIELDS)}): +(.*)", line) for line in header(name))
    return {match[1]: match[2] for match in matches if match}


def options(command: str, monkeypatch) -> cli.Options:
    """The options of a command as a header writes it, its environment set."""
    words = shlex.split(command)
    while re.fullmatch(r"[A-Z0-9_]+=.*", words[0]):
        monkeypatch.setenv(*words.pop(0).split("=", 1))
    assert words[:2] == ["python", "-m"] and words[2] in COMMANDS, command
    if words[2] == "codegen2_jax.evaluate":
        place = words.index("--model")
        del words[place : place + 2]
    words = [word for word in words if not word.startswith("--topology=")]  # a flag of precompile alone
    return cli.parse_flags(words[2:], "")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A directory without gin files, and no configuration left behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CODETASK_CL_DIR", raising=False)
    yield
    gin.clear_config()


def test_there_are_files():
    assert {"common.gin", "pp_tf.gin"} <= set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_file_opens_with_its_header(name):
    lines, found = header(name), fields(name)
    assert lines and len(lines[0]) > 20, f"{name} does not begin with what it is."
    if name in cli.run_files():
        assert list(found) == RUN_FIELDS
        assert found["Run"] == f"python -m codegen2_jax.train --gin_file={name}"
    elif name in EVALUATIONS:
        assert list(found) == RUN_FIELDS
        command = f"python -m codegen2_jax.evaluate --gin_file={name} --model DIR_OR_NAME"
        assert re.fullmatch(rf"(?:\w+_DIR=DIR |\w+_FILE=FILE )?{re.escape(command)}", found["Run"])
    else:
        title = " ".join(lines).split("Run:")[0]
        assert "fragment" in title, f"{name}: no command of its own in the header, and no word 'fragment'."


@pytest.mark.parametrize("name", FILES)
def test_the_command_of_a_header_builds_what_it_says(name, monkeypatch, capsys):
    command = fields(name).get("Run", f"python -m codegen2_jax.train --gin_file=pp_tf.gin --gin_file={name}")
    parsed = options(command, monkeypatch)
    config = cli.read(parsed)
    job, text = cli.build(config, parsed)
    assert callable(job.run) and callable(job.dry_run)
    assert name not in EVALUATIONS or job.benchmarks(), "nothing would be evaluated"
    assert name in {source.name for source in config.sources}, f"the command of {name} does not read it."
    assert capsys.readouterr().err == "", "a shipped command warns"
    assert text == gin.operative_config_str()


@pytest.mark.parametrize("name", cli.run_files())
def test_a_run_file_answers_to_the_common_macros(name):
    parsed = cli.parse_flags(["train", f"--gin_file={name}"], "")
    config = cli.read(parsed)
    assert MACROS <= set(config.macros)
    often = set(re.findall(r"[A-Z][A-Z_]+", fields(name)["Often changed"]))
    assert often <= set(config.macros), "the header names macros that do not exist"
    for macro in sorted(often - {"MODEL_DIR"}):
        value = config.macros[macro].value
        again = cli.parse_flags(["train", f"--gin_file={name}", f"--gin.{macro}={cli.bindings.literal(value)}"], "")
        changed = cli.read(again)
        targets = cli.bindings.resolve(changed)
        assert macro in cli.bindings.check_bindings(changed, targets).macros, f"{macro} has no effect in {name}."


COUNTED = [name for name in FILES if "parameters, from scratch" in " ".join(header(name))]


@pytest.mark.parametrize("name", COUNTED)
def test_a_shape_has_as_many_parameters_as_its_header_says(name):
    parsed = cli.parse_flags(["train", "--gin_file=pretraining/codegen2_7b.gin", f"--gin_file={name}"], "")
    config = cli.build(cli.read(parsed), parsed)[0].source.config
    count = int(re.search(r"([\d,]+) parameters", " ".join(header(name)))[1].replace(",", ""))
    assert DecoderOnly(config).parameters() == count


def test_only_common_gin_defines_what_nothing_uses():
    """Elsewhere a macro that no value mentions is a misspelt one."""
    for name in cli.run_files():
        config = cli.read(cli.parse_flags(["train", f"--gin_file={name}"], ""))
        for macro, sources in config.defined_in.items():
            if macro != "JOB" and macro not in config.used_in:
                assert "common.gin" in {source.name for source in sources}, f"{macro} in {name}"


def test_gin_files_are_found_beside_the_package():
    assert Path(cli.__file__).resolve().parent.parent == cli.PACKAGED.parent


def job_of(method: str, *presets: str, model: str | None = None):
    names = [f"{method}.gin", *(f"presets/{preset}.gin" for preset in presets)]
    names += [] if model is None else [f"models/{model}.gin"]
    parsed = cli.parse_flags(["train", *(f"--gin_file={name}" for name in names)], "")
    found = cli.build(cli.read(parsed), parsed)[0]
    gin.clear_config()
    return found


@pytest.mark.parametrize("model", [None, "smollm2_135m", "codet5_small"])
@pytest.mark.parametrize("method", ["pp_tf", "finetune"])
def test_the_preset_of_low_memory_reaches_any_model(method, model):
    names = [f"{method}.gin", *([] if model is None else [f"models/{model}.gin"]), "presets/low_memory.gin"]
    parsed = cli.parse_flags(["train", *(f"--gin_file={name}" for name in names)], "")
    found = cli.build(cli.read(parsed), parsed)[0]
    gin.clear_config()
    assert (found.source.remat, found.loss_blocks) == ("full", 8)


@pytest.mark.parametrize(("method", "leaf"), [("pp_tf", "prompt/keys"), ("finetune", "model/embedding")])
def test_a_pretrained_models_rates_suit_what_any_method_trains(method, leaf):
    part, name = leaf.split("/")
    job_of(method, model="smollm2_135m").optimizer.transformation(
        10, {part: {name: ("row", "embed")}}, {part: {name: np.ones((2, 1), bool)}}
    )


@pytest.mark.parametrize("method", ["pp_tf", "pp", "pp_tf_er", "finetune_er"])
def test_a_preset_reaches_the_pool_and_the_replay_of_any_method(method):
    """Given after the method's file; "strict" after "paper" takes back all that saw a later task or a task's name."""
    plain, paper, strict = (job_of(method, *presets) for presets in ((), ("paper",), ("paper", "strict")))
    assert (plain.tags, paper.tags, strict.tags) == ("none", "input_and_query", "none")
    if plain.prompt is not None:
        pools = [found.prompt for found in (plain, paper, strict)]
        assert [pool.selectable for pool in pools] == ["seen", "all", "seen"]
        assert [pool.prompt_order for pool in pools] == ["key_id", "score", "key_id"]
        assert paper.prompt.sees_future_data and not plain.prompt.sees_future_data
        assert strict.prompt.initialisation == plain.prompt.initialisation
        assert paper.prompt.assignment == plain.prompt.assignment
    if plain.replay is not None:
        schedules = [found.replay.schedule for found in (plain, paper, strict)]
        assert schedules == ["interleaved", "epoch_end", "interleaved"]
        assert paper.replay.with_current and not strict.replay.with_current


@pytest.mark.parametrize(
    ("method", "rate"),
    [("finetune_er", 5e-5), ("multitask", 5e-5), ("pp_er", 10.0), ("pp_tf", 10.0), ("task_prompts", 100.0)],
)
def test_the_papers_rates_reach_every_method_and_what_still_differs_is_listed(method, rate):
    plain, paper = job_of(method), job_of(method, "paper")
    optimizer = paper.optimizer
    assert (optimizer.learning_rate, optimizer.warmup_steps, optimizer.clip_norm) == (rate, 500, None)
    assert paper.replay is None or paper.replay.size == 5000
    before, after = "; ".join(deviations(plain)), "; ".join(deviations(paper))
    for phrase in ("warm-up steps 10, published", "validation decodes greedily", "no task tags"):
        assert (phrase in before) == (method != "multitask" or phrase != "no task tags") and phrase not in after
    for phrase in ("150 steps for every task", "64 examples of each split", "weights nano_t5", "stream pytask_cl"):
        assert phrase in before and phrase in after
    if method == "finetune_er":
        assert "learning rate 0.001 for every task, published 5e-05, on CONCODE 0.0001" in before
        assert "learning rate 5e-05 for every task, published 5e-05, on CONCODE 0.0001" in after
        for phrase in ("gradients clipped to norm 1", "a buffer of 500 examples, published 5,000", "join every step"):
            assert phrase in before and phrase not in after
    if method == "pp_tf":
        assert "learning rate of prompts 1.0, published 10.0" in before and "learning rate of" not in after
        assert "keys assigned by 'disjoint'" in before and "keys assigned by 'disjoint'" in after
    if method == "pp_er":
        assert "keys assigned" not in before
