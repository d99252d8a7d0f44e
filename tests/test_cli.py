"""The command line: what it accepts, and that every mistake is one line with a remedy and exit code 2."""

import importlib
import os
import re
import resource
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import gin
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codegen2_jax import bindings, cli, errors, start_up, train

TOY = """\
# A toy.
from __gin__ import dynamic_registration
import toy_job
include "common.gin"
include "part.gin"
JOB = @toy_job.Job()
toy_job.Job:
  model_dir = %MODEL_DIR
  init_from = %INIT_FROM
  limit = %EVAL_EXAMPLES
  data_dir = %CODETASK_CL_DIR
  part = %PART
PART = @toy_job.Pool()
toy_job.Pool.top_k = %TOP_K
toy_job.Pool.kind = %POOL_PRESET
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A working directory with toy.gin; returns a function that runs the command there: (code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    for name in bindings.FROM_ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    Path("toy.gin").write_text(TOY)
    Path("part.gin").write_text("TOP_K = 7\n")
    yield tmp_path
    gin.clear_config()


@pytest.fixture
def command(toy, capsys):
    """Runs the command in this process: arguments -> (exit code, stdout, stderr)."""

    def run(*arguments, gin_file="toy.gin"):
        files = [f"--gin_file={gin_file}"] if gin_file else []
        code = train.main(["train", *files, *arguments])
        return (code, *capsys.readouterr())

    return run


def shown(text: str, name: str) -> str:
    """The value of a macro or parameter in a printed configuration."""
    [value] = re.findall(rf"^{re.escape(name)} = (.*)$", text, re.MULTILINE)
    return value


# ------------------------------------------------------------------------------------------------- what works


def test_later_files_win_and_the_command_line_wins_last(command):
    Path("more.gin").write_text("TOP_K = 8\nSEED = 5\nEVAL_EXAMPLES = 9\n")
    code, out, err = command("--gin_file=more.gin", "--gin.EVAL_EXAMPLES=None", "--print_config")
    assert (code, err) == (0, "")
    assert shown(out, "TOP_K") == "8"
    assert shown(out, "EVAL_EXAMPLES") == "None"
    assert shown(out, "MODEL_DIR") == "'runs/toy-more'"
    assert shown(out, "toy_job.Job.rate") == "0.5", "defaults are part of the resolved configuration"
    assert not Path("runs").exists()


def test_parameters_can_be_set_by_any_unique_end_of_their_name(command):
    code, out, _ = command(
        "--gin.Pool.weight=2", "--gin.toy_job.Job.flag=True", "--gin_bindings=Job.names = ('x', 'y')", "--print_config"
    )
    assert code == 0
    assert shown(out, "PART/toy_job.Pool.weight") == "2"
    assert shown(out, "toy_job.Job.flag") == "True"
    assert shown(out, "toy_job.Job.names") == "('x', 'y')"


def test_run_hands_over_the_configuration_without_places(command):
    code, out, _ = command("--model_dir=/somewhere/else", "--gin.CODETASK_CL_DIR='/data'")
    assert code == 0
    assert "model_dir='/somewhere/else'" in out and "data_dir='/data'" in out
    _, _, text = out.partition("\n")
    assert "/somewhere" not in text and "/data" not in text and "0x" not in text
    assert shown(text, "TOP_K") == "7"
    assert command("--model_dir=/third")[1].partition("\n")[2] == text, "the same run wherever it lies"


def test_long_places_leave_no_trace(command):
    text = command("--model_dir=/" + "a b/" * 60)[1].partition("\n")[2]
    assert "a b" not in text and shown(text, "POOL_PRESET") == "'disjoint'"


def test_dry_run_builds_and_does_not_run(command):
    code, out, _ = command("--dry_run")
    assert code == 0 and out == "dry run of Pool(top_k=7, kind='disjoint', weight=0.1)\n"


def test_show_batch_shows_and_does_not_run(command):
    code, out, _ = command("--show_batch")
    assert code == 0 and out == "a batch of Pool(top_k=7, kind='disjoint', weight=0.1)\n"


def test_search_order(command, tmp_path):
    Path("here").mkdir()
    Path("here/part.gin").write_text("TOP_K = 3\n")
    Path("here/extra.gin").write_text("TOP_K = 4\n")
    _, out, _ = command("--gin_search_paths=nowhere,here", "--print_config")
    assert shown(out, "TOP_K") == "7", "the working directory is searched first"
    Path("part.gin").unlink()
    _, out, _ = command("--gin_search_paths=nowhere,here", "--print_config")
    assert shown(out, "TOP_K") == "3"
    _, out, _ = command("--gin_search_paths=here", "--gin_file=extra.gin", "--print_config")
    assert shown(out, "TOP_K") == "4"
    code, _, err = command("--print_config")
    assert code == 2 and "toy.gin line 5: no gin file part.gin in the working directory, " in err


def test_folders_named_like_packaged_ones_do_no_harm(command, caplog, monkeypatch):
    Path("models").mkdir()
    monkeypatch.syspath_prepend(".")
    Path("toy.gin").write_text(TOY + 'include "streams/pytask_cl.gin"\n')
    Path("streams").mkdir()
    code, _, err = command("--print_config")
    assert (code, err, caplog.records) == (0, "", [])


def test_the_environment_fills_what_nothing_else_gives(command, monkeypatch):
    monkeypatch.setenv("CODETASK_CL_DIR", "/from/environment")
    assert shown(command("--print_config")[1], "CODETASK_CL_DIR") == "'/from/environment'"
    assert shown(command("--gin.CODETASK_CL_DIR='/mine'", "--print_config")[1], "CODETASK_CL_DIR") == "'/mine'"
    Path("part.gin").write_text("CODETASK_CL_DIR = %gin.REQUIRED\n")
    assert command("--print_config")[0] == 0
    monkeypatch.delenv("CODETASK_CL_DIR")
    code, _, err = command("--print_config")
    assert code == 2
    assert err == (
        "error: CODETASK_CL_DIR is required by part.gin line 1; give --gin.CODETASK_CL_DIR=VALUE or the environment "
        "variable CODETASK_CL_DIR.\n"
    )


def test_two_parts_of_one_kind_are_told_apart_by_their_scopes(command):
    Path("part.gin").write_text("TOP_K = 7\n")
    Path("toy.gin").write_text(TOY + "PART/toy_job.Pool.weight = 3.0\nother/toy_job.Pool.weight = 4.0\n")
    code, out, err = command()
    assert (code, err) == (0, "") and "weight=3.0" in out


# ------------------------------------------------------------------------------------- nothing is ignored silently


def test_what_has_no_effect_is_said(command):
    code, _, err = command("--gin.BATCH_SIZE=5", "--gin.linear.peak=1.0", "--print_config")
    assert code == 2 and "no gin file mentions linear" in err
    Path("part.gin").write_text("PART = None\n")
    Path("toy.gin").write_text(TOY.replace("PART = @toy_job.Pool()\n", "") + "SPARE = @toy_job.Pool()\n")
    code, out, err = command("--gin.SPARE=None")
    assert code == 2 and "nothing uses a macro SPARE" in err
    Path("toy.gin").write_text(TOY.replace("PART = @toy_job.Pool()\n", ""))
    code, out, err = command("--gin.TOP_K=5", "--gin.Pool.weight=1.0", "--gin.EVAL_EXAMPLES=3")
    assert code == 0 and "part=None" in out
    assert err == "warning: Pool.weight has no effect in toy.gin.\nwarning: TOP_K has no effect in toy.gin.\n"


def test_what_is_given_twice_is_said(command):
    code, out, err = command("--gin.TOP_K=1", "--gin.TOP_K=2", "--print_config")
    assert (code, shown(out, "TOP_K")) == (0, "2")
    assert err == "warning: TOP_K is given more than once; --gin.TOP_K=2 counts.\n"
    code, out, err = command("--gin.MODEL_DIR='a'", "--model_dir=b", "--print_config")
    assert shown(out, "MODEL_DIR") == "'b'" and "--model_dir=b counts" in err
    Path("toy.gin").write_text(TOY.replace("%MODEL_DIR", "'fixed'"))
    code, out, err = command("--model_dir=b", "--print_config")
    assert shown(out, "toy_job.Job.model_dir") == "'fixed'" and err == "warning: MODEL_DIR has no effect in toy.gin.\n"


# ------------------------------------------------------------------------------------------------------ mistakes

MISTAKES = {
    # unknown names
    "--gin.TOPK=3": "--gin.TOPK=3: nothing uses a macro TOPK; did you mean TOP_K?",
    "--gin.top_k=3": "--gin.top_k=3: nothing uses a macro top_k; did you mean Pool.top_k?",
    "--gin.Pol.top_k=3": "--gin.Pol.top_k=3: no gin file mentions Pol; did you mean Pool?",
    "--gin.Pool.topk=3": "--gin.Pool.topk=3: Pool has no parameter topk; did you mean top_k?",
    "--gin.Job.part=@Soft()": "--gin.Job.part='@Soft()': no gin file mentions Soft; known: Job, Pool.",
    "--gin.TOP_K=%TOP_K": "--gin.TOP_K=%TOP_K: the macro %TOP_K stands for itself; give it a value.",
    "--gin.Job.peak=@Job()": "something is made out of itself, by a ring of @name().",
    "--gin.TOP_K=%TOPKK": "--gin.TOP_K=%TOPKK: the macro %TOPKK has no value; did you mean TOP_K?",
    # types
    "--gin.TOP_K=2.5": "--gin.TOP_K=2.5: top_k of Pool takes a whole number.",
    "--gin.TOP_K=1e1": "--gin.TOP_K=1e1: top_k of Pool takes a whole number; write --gin.TOP_K=10",
    "--gin.TOP_K=True": "--gin.TOP_K=True: top_k of Pool takes a whole number.",
    "--gin.TOP_K='5'": "--gin.TOP_K=\"'5'\": top_k of Pool takes a whole number; write --gin.TOP_K=5",
    "--gin.EVAL_EXAMPLES=0.5": "--gin.EVAL_EXAMPLES=0.5: limit of Job takes a whole number or None.",
    "--gin.Pool.weight=None": "--gin.Pool.weight=None: weight of Pool takes a number.",
    "--gin.INIT_FROM=5": "--gin.INIT_FROM=5: init_from of Job takes a quoted string or None; "
    "write --gin.INIT_FROM='\"5\"'",
    "--gin.MODEL_DIR=5": "--gin.MODEL_DIR=5: model_dir of Job takes a quoted string; write --gin.MODEL_DIR='\"5\"'",
    '--gin.POOL_PRESET="disjont"': "--gin.POOL_PRESET='\"disjont\"': kind of Pool takes one of 'disjoint', 'code'; "
    "write --gin.POOL_PRESET='\"disjoint\"'",
    "--gin.Job.flag=1": "--gin.Job.flag=1: flag of Job takes True or False; write --gin.Job.flag=True",
    "--gin.Job.names=('a')": "--gin.Job.names=\"('a')\": names of Job takes a tuple whose entries are each a quoted "
    "string; write --gin.Job.names=\"('a',)\"",
    "--gin.Job.names=['a','b']": "--gin.Job.names=\"['a','b']\": names of Job takes a tuple whose entries are each a "
    "quoted string; write --gin.Job.names=\"('a', 'b')\"",
    "--gin.Job.part=@Pool": "--gin.Job.part=@Pool: part of Job takes what it makes, not the maker; "
    "write --gin.Job.part='@Pool()'",
    "--gin.Job.part=@Job()": "--gin.Job.part='@Job()': part of Job takes Pool or Soft or None.",
    "--gin.Job.rate=@Pool()": "--gin.Job.rate='@Pool()': rate of Job takes a number.",
    "--gin.JOB=@Job": "--gin.JOB=@Job: JOB is what a run makes: JOB = @module.Name()",
    "--gin.JOB=3": "--gin.JOB=3: JOB is what a run makes: JOB = @module.Name()",
    # strings without quotes, and other things that cannot be read
    "--gin.INIT_FROM=nano_t5": "--gin.INIT_FROM=nano_t5: a string needs quotes that gin sees: "
    "--gin.INIT_FROM='\"nano_t5\"'",
    "--gin.INIT_FROM=../my weights": "--gin.INIT_FROM='../my weights': a string needs quotes that gin sees: "
    "--gin.INIT_FROM='\"../my weights\"'",
    "--gin.INIT_FROM=gs://b/x-1": "--gin.INIT_FROM=gs://b/x-1: a string needs quotes that gin sees: "
    "--gin.INIT_FROM='\"gs://b/x-1\"'",
    "--gin.INIT_FROM=none": "--gin.INIT_FROM=none: write --gin.INIT_FROM=None",
    "--gin.Job.flag=true": "--gin.Job.flag=true: write --gin.Job.flag=True",
    "--gin.SEED=": "--gin.SEED='': there is no value behind the equals sign.",
    "--gin.SEED=(1,": "--gin.SEED='(1,': a bracket or a quote is not closed;",
    "--gin.SEED='a": "a bracket or a quote is not closed;",
    "--gin.SEED=1 2": "--gin.SEED='1 2': Expected newline;",
    "--gin.SEED=@": "--gin.SEED=@: ",
    "--gin_bindings=SEED": "a statement is NAME = VALUE",
    "--gin_bindings==3": "a statement is NAME = VALUE",
    # values out of range, required ones
    "--gin.TOP_K=99": "top_k=99 exceeds pool_size=68; lower TOP_K.",
    "--gin.Pool.weight=-1.0": "weight=-1.0 is negative; use 0 or more.",
    "--gin.Job.limit=%gin.REQUIRED": "Job.limit is required; give --gin.Job.limit=VALUE.",
    "--gin.EVAL_EXAMPLES=%gin.REQUIRED": "EVAL_EXAMPLES is required; give --gin.EVAL_EXAMPLES=VALUE.",
    # flags
    "--gin_fil=x": "unknown flag --gin_fil; did you mean --gin_file?",
    "--SEED=3": "unknown flag --SEED; macros and parameters are set by --gin.NAME=VALUE.",
    "--dry_run=3": "flag --dry_run=3: ",
    "--profile_steps=5:3": "--profile_steps=5:3 is no range of steps; --profile_steps=10:15 traces 10 to 14.",
    "--profile_steps=7": "--profile_steps=7 is no range of steps; ",
    "--profile_steps=1:2": "--profile_steps traces training steps, and Job takes none; drop it.",
    "--gin.SEED": "--gin.SEED: the value follows an equals sign: --gin.SEED=VALUE",
    "other.gin": "unexpected argument 'other.gin'; write --gin_file=other.gin.",
    # files
    "--gin_file=pp_ft.gin": "no gin file pp_ft.gin in the working directory, ",
    "--gin_file=pp_tf": "did you mean pp_tf.gin?",
    "--gin_file=..": "no gin file .. in the working directory, ",
}


@pytest.mark.parametrize("argument", MISTAKES)
def test_a_mistake_on_the_command_line_is_one_line(command, argument):
    code, out, err = command(argument)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1 and err.startswith("error: ")
    assert MISTAKES[argument] in err and "configurable" not in err and "0x" not in err


def test_a_value_without_an_equals_sign(command):
    _, _, err = command("--gin.INIT_FROM", '"x"')
    assert err == "error: --gin.INIT_FROM: the value follows an equals sign: --gin.INIT_FROM='\"x\"'\n"


FILE_MISTAKES = {
    "TOP_K = 2.5": "part.gin line 2: TOP_K = 2.5: top_k of Pool takes a whole number.",
    "TOP_KK = 3": "part.gin line 2: TOP_KK = 3: nothing uses a macro TOP_KK; did you mean TOP_K?",
    "INIT_FROM = nano_t5  # ours": "part.gin line 2: INIT_FROM = nano_t5 # ours: a string needs quotes that gin sees: "
    'INIT_FROM = "nano_t5"',
    "SEED = (1,\n": "a bracket or a quote is not closed;",
    "SEED = 'abc": "a bracket or a quote is not closed;",
    "SEED 3": "part.gin line 2: SEED 3: ",
    "include nothing": "part.gin line 2: include nothing: cannot read 'nothing';",
    'include "toy.gin"': "part.gin line 2: toy.gin includes itself; remove one of the includes.",
    'include "comon.gin"': "part.gin line 2: no gin file comon.gin in the working directory, ",
    "import no_such_module": "part.gin line 2: cannot import no_such_module: No module named 'no_such_module'",
    "import toy_job\ntoy_job.Soft.num_tokens = 3": "a file with imports begins with 'from __gin__ import",
    "x:\n y = 1\n  z = 2": "part.gin line 4: z = 2: ",
    "SEED = $3": "part.gin line 2: SEED = $3: ",
    "\0": "part.gin line 2: ",
}


@pytest.mark.parametrize("text", FILE_MISTAKES)
def test_a_mistake_in_a_file_names_file_and_line(command, text):
    Path("part.gin").write_text("# A part.\n" + text + "\n")
    code, out, err = command()
    assert (code, out) == (2, "")
    assert err.count("\n") == 1 and err.startswith("error: ")
    assert FILE_MISTAKES[text] in err


TOY_MISTAKES = {
    "toy_job.Job()": ("toy_job.Jab()", "toy.gin line 6: toy_job has no Jab; did you mean Job?"),
    "toy_job.Pool.kind": ("toyjob.Pool.kind", "toy.gin line 15: toyjob.Pool: no import provides"),
    "PART = @toy_job.Pool()": ("PART = @toy_job.Soft()", "toy_job.Soft(): Soft needs num_tokens; bind toy_job.Soft."),
    "JOB = @toy_job.Job()": ("", "toy.gin: no JOB is named, so nothing can run; begin with one of "),
    "import toy_job": (
        "import toy_job\nimport codegen2_jax.train",
        "toy.gin line 4: codegen2_jax.train is a command; run with -m it would be loaded twice.",
    ),
    "  model_dir = %MODEL_DIR": ("  init_from = None", "Job needs model_dir; bind toy_job.Job.model_dir in a gin"),
    "toy_job.Pool.top_k = %TOP_K": ("toy_job.errors.x = 3", "toy_job.errors is no function and no class"),
}


@pytest.mark.parametrize("text", TOY_MISTAKES)
def test_a_mistake_in_what_is_configured_names_file_and_line(command, text):
    replacement, message = TOY_MISTAKES[text]
    assert text in TOY
    Path("toy.gin").write_text(TOY.replace(text, replacement))
    code, out, err = command()
    assert (code, out) == (2, "")
    assert err.count("\n") == 1 and err.startswith("error: ") and message in err


@pytest.mark.parametrize("flag", ["print_config", "dry_run", "show_batch"])
def test_steps_are_traced_only_where_steps_are_taken(command, flag):
    code, out, err = command("--profile_steps=90000:90001", f"--{flag}")
    assert (code, out) == (2, "")
    assert err == f"error: --profile_steps=90000:90001 traces training steps, and --{flag} takes none; drop one.\n"


def test_no_file_at_all_lists_the_run_files(command):
    code, _, err = command(gin_file=None)
    assert code == 2 and err.startswith("error: no --gin_file given; one of ") and "pp_tf.gin" in err


PROGRAMS, LEAST = "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"


@pytest.fixture
def unset(monkeypatch, tmp_path):
    """An environment that says nothing of compiled programs; what is set in it is forgotten."""
    for name in (PROGRAMS, LEAST):
        monkeypatch.setenv(name, "")  # noted, so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_all_compiled_programs_are_kept(unset, tmp_path):
    start_up.use_compilation_cache()
    assert Path(os.environ[PROGRAMS]).parent == tmp_path / "codegen2_jax" / "xla_programs"
    assert os.environ[LEAST] == "0"


def test_what_the_user_says_of_compiled_programs_stays(unset, monkeypatch, tmp_path, capsys):
    for elsewhere in (str(tmp_path / "elsewhere"), "gs://bucket/programs"):
        monkeypatch.setenv(PROGRAMS, elsewhere)
        start_up.use_compilation_cache()
        assert (os.environ[PROGRAMS], os.environ.pop(LEAST)) == (elsewhere, "0")
        monkeypatch.setenv(LEAST, "2.5")
        start_up.use_compilation_cache()
        assert (os.environ[PROGRAMS], os.environ.pop(LEAST)) == (elsewhere, "2.5")
    assert not capsys.readouterr().err
    monkeypatch.setenv(PROGRAMS, "")
    start_up.use_compilation_cache()
    assert os.environ[PROGRAMS] == "" and LEAST not in os.environ


def test_a_folder_that_cannot_be_written_to_is_one_line(unset, monkeypatch, tmp_path, capsys):
    """What it holds already is still read; a file in its place holds nothing."""
    (tmp_path / "file").write_text("")
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        for name, left in (("", (str(tmp_path), "1e9")), ("new", ("", "0"))):
            patch.setenv(PROGRAMS, str(tmp_path / name))
            patch.setenv(LEAST, "0")
            start_up.use_compilation_cache()
            start_up.use_compilation_cache()  # as the restarted process does
            assert (os.environ[PROGRAMS], os.environ[LEAST]) == left
    monkeypatch.setenv(PROGRAMS, str(tmp_path / "file" / "programs"))
    start_up.use_compilation_cache()
    lines = capsys.readouterr().err.splitlines()
    assert os.environ[PROGRAMS] == "" and len(lines) == 3
    assert lines[2].startswith(f"compiled programs are not kept: {tmp_path}/file/programs cannot be written to; set ")


def test_without_a_home_nothing_is_kept(unset, monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    start_up.use_compilation_cache()
    assert PROGRAMS not in os.environ and LEAST not in os.environ


@pytest.mark.parametrize("command", ["train", "generate", "evaluate"])
def test_every_command_that_compiles_much_keeps_its_programs(command, monkeypatch, unset, capsys):
    """As the program of a process; called from another program it leaves the environment alone."""
    monkeypatch.setattr(sys, "argv", [command, "--no_such_flag"])
    door = str(Path(start_up.__file__).with_name(f"{command}.py"))
    assert runpy.run_path(door)["main"]([command, "--no_such_flag"]) == 2
    assert PROGRAMS not in os.environ
    with pytest.raises(SystemExit):
        runpy.run_path(door, run_name="__main__")
    assert PROGRAMS in os.environ and os.environ[LEAST] == "0"


def test_jax_reads_what_the_commands_set(program_environment, tmp_path):
    program = (
        "from codegen2_jax import cli\ncli.keep_programs()\nimport jax\n"
        "print(jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs)"
    )
    environment = {name: value for name, value in program_environment.items() if name not in (PROGRAMS, LEAST)}
    environment |= {"XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    folder, seconds = done.stdout.split()
    assert Path(folder).parent == tmp_path / "codegen2_jax" / "xla_programs" and float(seconds) == 0, done.stderr


def test_an_unreadable_file(command):
    Path("part.gin").write_bytes(b"\xff\xfe")
    code, _, err = command()
    assert code == 2 and err.startswith("error: toy.gin line 5: cannot read part.gin: ") and err.count("\n") == 1


@pytest.mark.parametrize("name", ["UserError", "NoValidCheckpointError", "NonFiniteError", "PreemptedError"])
def test_how_a_run_ends_is_its_exit_code(command, name):
    code, out, err = command(f"--gin.Job.ends_with='{name}'")
    assert (code, out, err) == (getattr(errors, name).exit_code, "", "error: something happened\n")


def test_an_interrupt_is_one_line(command):
    assert command("--gin.Job.ends_with='KeyboardInterrupt'") == (130, "", "error: interrupted.\n")


@pytest.mark.parametrize("library", ["numpy", "jax.numpy"])
def test_too_little_memory_is_one_line(library, capsys):
    """2 PiB, of the machine and of a device."""
    code = cli.guarded(lambda: importlib.import_module(library).ones(2**51, "int8"))
    err = capsys.readouterr().err
    assert code == errors.DoesNotFitError.exit_code and err.count("\n") == 1
    assert err.startswith("error: there is too little memory (") and "BATCH_SIZE" in err


def test_our_own_mistakes_keep_their_traceback(command):
    with pytest.raises(AttributeError):
        command("--gin.Job.ends_with='NoSuchError'")


@settings(deadline=None)
@given(st.text(max_size=20))
def test_what_a_remedy_says_to_type_gives_that_value(text):
    """Through the shell's reading and gin's, whatever is in the string."""
    if "\0" in text:
        return
    [argument] = shlex.split(bindings.flag("NAME", bindings.literal(text)))
    assert gin.config.parse_value(argument.removeprefix("--gin.NAME=")) == text


@settings(deadline=None)
@given(st.tuples(st.text(alphabet="ab'\"$`!\\ ", max_size=6), st.integers(), st.none() | st.booleans()))
def test_what_a_remedy_says_to_type_gives_that_tuple(value):
    [argument] = shlex.split(bindings.flag("NAME", bindings.literal(value)))
    assert gin.config.parse_value(argument.removeprefix("--gin.NAME=")) == value


# --------------------------------------------------------------------------------------------- whole processes


def start(arguments, environment, cwd):
    """Runs the real command: (exit code, stdout, stderr)."""
    line = [sys.executable, "-m", "codegen2_jax.train", *arguments]
    done = subprocess.run(line, env=environment, cwd=cwd, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_help_answers_in_under_a_second(program_environment, tmp_path):
    """By the processor time it takes, which other work on the machine does not change."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code, out, err = start(["--help"], program_environment, tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (code, err) == (0, "")
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.8
    for name in ("--gin_file", "--gin.NAME=VALUE", "--model_dir", "--dry_run", "pp_tf.gin"):
        assert name in out


def test_flags_and_names_are_judged_before_anything_heavy_is_imported(program_environment, tmp_path):
    program = (
        "import sys; from codegen2_jax import train\n"
        "codes = [train.main(['train', *a.split()]) for a in ('--help', '--gin_file=pp_tf.gin --gin.TOP_KK=3')]\n"
        "print(codes, {'jax', 'numpy', 'flax', 'tensorflow'} & set(sys.modules))"
    )
    line = [sys.executable, "-c", program]
    done = subprocess.run(line, env=program_environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[0, 2] set()", done.stderr


@pytest.mark.skipif(sys.platform != "linux" or "glibc" not in os.confstr("CS_GNU_LIBC_VERSION"), reason="glibc only")
def test_a_cpu_run_restarts_once_with_the_allocator_settings(program_environment, toy):
    tests = str(Path(__file__).parent)
    environment = {name: value for name, value in program_environment.items() if name not in start_up.ALLOCATOR}
    environment |= {"PYTHONPATH": f"{tests}:{environment['PYTHONPATH']}", "JAX_PLATFORMS": "cpu"}
    code, out, err = start(["--gin_file=toy.gin"], environment, toy)
    assert code == 0, err
    assert out.partition("\n")[2].split()[1] == str(2**28)  # after the line that announces the restart
    assert out.count("restarting with MALLOC_MMAP_THRESHOLD_=") == 1 and err == ""
    for keep in ({start_up.KEEP_ALLOCATOR: "1"}, {"MALLOC_TRIM_THRESHOLD_": "1000000"}, {"JAX_PLATFORMS": "tpu"}):
        code, out, err = start(["--gin_file=toy.gin"], environment | keep, toy)
        assert (code, out.split()[1], err) == (0, "None", "")
