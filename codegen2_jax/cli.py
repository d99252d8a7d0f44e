"""The command line, once for all commands: flags, gin files, and errors of one line.

A command's way: flags (absl) -> the statements of all gin files and of the command line, read without importing
anything, so that a misspelt name answers at once -> imports and checks (`bindings.py`) -> gin itself -> the object that
the macro JOB makes -> its `run(config_text=...)`, `dry_run()` or `show_batch()`.

Files are looked for in the working directory, in --gin_search_paths, and in the packaged `gin_configs`, in this order.
"""

import argparse
import dataclasses
import inspect
import io
import logging
import os
import re
import sys
import textwrap
import tokenize
from collections.abc import Callable, Sequence
from pathlib import Path

import gin
from absl import flags
from gin import config_parser

from codegen2_jax import bindings, processes, start_up
from codegen2_jax.annotations import nearest
from codegen2_jax.bindings import Binding, Config, Given, Macro, Reference, Source
from codegen2_jax.errors import (
    DoesNotFitError,
    NonFiniteError,
    NoValidCheckpointError,
    PreemptedError,
    StorageError,
    UserError,
)

INTERRUPTED = 130  # what shells report for SIGINT: 128 + 2
PACKAGED = Path(__file__).resolve().parent.parent / "gin_configs"
# Macros that say where things lie and how they are compiled: no part of what a run computes, so they may differ between
# two starts of one run.
PLACES = ("MODEL_DIR", "MESH", "AXES", "COMPILER_OPTIONS", *bindings.FROM_ENVIRONMENT)
FLAGS = {
    "gin_file": (flags.DEFINE_multi_string, [], "A gin file; may be repeated, later files win."),
    "gin_bindings": (flags.DEFINE_multi_string, [], "'NAME = VALUE', in short --gin.NAME=VALUE; may be repeated."),
    "gin_search_paths": (flags.DEFINE_list, [], "Directories with gin files, before the packaged ones."),
    "model_dir": (flags.DEFINE_string, None, "The run directory; default runs/<names of the gin files>."),
    "print_config": (flags.DEFINE_bool, False, "Print the resolved configuration and stop."),
    "dry_run": (flags.DEFINE_bool, False, "Build everything, lower one step, print its cost, train nothing."),
    "show_batch": (flags.DEFINE_bool, False, "Print what the model would read first, as text, train nothing."),
    "distributed": (flags.DEFINE_string, "auto", "One process (off), several (on), or several where a cluster tells."),
    "coordinator_address": (flags.DEFINE_string, None, "HOST:PORT of process 0, where no cluster tells."),
    "num_processes": (flags.DEFINE_integer, None, "How many processes run together, where no cluster tells."),
    "process_id": (flags.DEFINE_integer, None, "Number of this process, from 0, where no cluster tells."),
    "connect_timeout": (flags.DEFINE_integer, 300, "Seconds to wait for the other processes."),
    "profile_steps": (flags.DEFINE_string, None, "FIRST:LAST, steps to trace into MODEL_DIR/profile."),
    "help": (flags.DEFINE_bool, False, "Show this."),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """The parsed flags."""

    gin_file: list[str]
    gin_bindings: list[str]
    gin_search_paths: list[str]
    model_dir: str | None
    print_config: bool
    dry_run: bool
    show_batch: bool
    distributed: str
    coordinator_address: str | None
    num_processes: int | None
    process_id: int | None
    connect_timeout: int
    profile_steps: str | None

    def run_arguments(self) -> dict[str, tuple[int, int]]:
        """What the flags add to a job's `run`; UserError for steps that are no range, and where none are taken."""
        if self.profile_steps is None:
            return {}
        match = re.fullmatch(r"(\d+):(\d+)", self.profile_steps)
        if match is None or int(match[1]) >= int(match[2]):
            raise UserError(
                f"--profile_steps={self.profile_steps} is no range of steps; --profile_steps=10:15 traces 10 to 14."
            )
        for name in ("print_config", "dry_run", "show_batch"):
            if getattr(self, name):
                raise UserError(
                    f"--profile_steps={self.profile_steps} traces training steps, and --{name} takes none; drop one."
                )
        return {"profile_steps": (int(match[1]), int(match[2]))}


def run(argv: list[str], usage: str, restart: bool = False) -> int:
    """What `train` does: builds the job that the gin files describe and runs it. Returns the exit code.

    `usage` heads the --help text. `restart` allows the one restart of the process that the allocator settings need.
    """
    return guarded(lambda: _run(argv, usage, restart))


def keep_programs() -> None:
    """Has the next start find what this one compiles; for the doors that compile much, when they are the program."""
    start_up.use_compilation_cache()


class Parser(argparse.ArgumentParser):
    """For the doors that take plain flags: a mistake on the command line is one line, like every other."""

    def __init__(self, prog: str, **options):
        super().__init__(prog=prog, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

    def error(self, message: str):
        raise UserError(f"{message}; see python -m {self.prog} --help.")


def guarded(command: Callable[[], None], *, reads_and_writes: bool = False) -> int:
    """Runs a command; an error that the user can do something about becomes one line and its exit code.

    reads_and_writes: the command is files in and files out, so that an OSError is about a path that was given.
    """
    start_up.leave_absent_tpu()
    try:
        command()
        processes.leave(0, together=True)
        return 0
    except (UserError, NoValidCheckpointError, NonFiniteError, StorageError, DoesNotFitError, PreemptedError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        processes.leave(error.exit_code, together=isinstance(error, PreemptedError))
        return error.exit_code
    except OSError as error:
        if not reads_and_writes:
            raise
        place, reason = error.filename or "a file", error.strerror or one_line(error)
        print(f"error: {place} cannot be read or written ({reason}); give another path.", file=sys.stderr)
        return UserError.exit_code
    except KeyboardInterrupt:
        print("error: interrupted.", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if not _out_of_memory(error):
            raise
        print(
            f"error: there is too little memory ({one_line(error)[:200]}); fewer rows at a time (BATCH_SIZE, "
            "ACCUMULATION_STEPS) or shorter ones take less, and so does what docs/performance.md names.",
            file=sys.stderr,
        )
        processes.leave(DoesNotFitError.exit_code, together=False)
        return DoesNotFitError.exit_code


def _out_of_memory(error: Exception) -> bool:
    """Whether the machine's memory (numpy's word) or a device's (XLA's) is exhausted; imports nothing."""
    return isinstance(error, MemoryError) or (
        type(error).__name__ == "JaxRuntimeError" and str(error).startswith("RESOURCE_EXHAUSTED")
    )


def one_line(error: BaseException) -> str:
    """The message without what gin appends to it, in one line."""
    message = re.split(r"\n +(?:In call to configurable '|No values supplied by Gin)", str(error))[0]
    return " ".join(message.split()) or type(error).__name__


def _run(argv: list[str], usage: str, restart: bool) -> None:
    options = parse_flags(argv, usage)
    if options is None:
        return
    config = read(options)
    arguments = options.run_arguments()
    if restart and not (options.print_config or options.dry_run or options.show_batch):
        start_up.use_large_allocations()
    if not (options.print_config or options.show_batch):
        meeting = processes.Meeting(options.coordinator_address, options.num_processes, options.process_id)
        processes.connect(options.distributed, meeting, timeout=options.connect_timeout)
    job, text = build(config, options)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("codegen2_jax").setLevel(logging.INFO if processes.is_first() else logging.CRITICAL)
    if options.print_config:
        print(text, end="")
    elif options.dry_run:
        job.dry_run()
    elif options.show_batch:
        job.show_batch()
    else:
        if arguments and "profile_steps" not in inspect.signature(job.run).parameters:
            raise UserError(f"--profile_steps traces training steps, and {type(job).__name__} takes none; drop it.")
        job.run(config_text=without_places(text), **arguments)


def describe(argv: list[str], *, refused: Sequence[str] = ()) -> tuple[object, str]:
    """(the job that a command of `train` would run, its configuration without places), with nothing run.

    refused: flags of `train` that argv[0], the command at hand, would have no use for; UserError where one is given.
    """
    job, text = _build_without(argv, refused)
    return job, without_places(text)


def describe_gin(argv: list[str]) -> tuple[object, str]:
    """(the job of the gin files, its whole configuration), for a command with flags of its own besides theirs.

    Raises UserError for the other flags of `train`, which would have no effect.
    """
    return _build_without(argv, [name for name in FLAGS if not name.startswith("gin_") and name != "help"])


def _build_without(argv: list[str], refused: Sequence[str]) -> tuple[object, str]:
    options = parse_flags(argv, "")
    if options is None:
        raise UserError("--help stands alone.")
    for name in refused:
        if getattr(options, name) != FLAGS[name][1]:
            raise UserError(f"--{name} is for a single training run; {argv[0]} does nothing with it, so drop it.")
    return build(read(options), options)


def run_name(arguments: list[str]) -> str:
    """What a run with these flags is called by default: the names of its gin files."""
    options = parse_flags(["train", *arguments], "")
    return _name_of(options) if options else ""


def _name_of(options: Options) -> str:
    return "-".join(Path(name).stem for name in options.gin_file)


def parse_flags(argv: list[str], usage: str) -> Options | None:
    """The flags of `argv` (argv[0] is the program), or None when --help was asked for and is answered."""
    parser = flags.FlagValues()
    for name, (define, default, text) in FLAGS.items():
        define(name, default, text, flag_values=parser)
    try:
        program, *rest = parser(_rewrite_bindings(argv))
    except flags.UnrecognizedFlagError as error:
        meant = nearest(error.flagname, FLAGS)
        hint = f"did you mean --{meant}?" if meant else "macros and parameters are set by --gin.NAME=VALUE."
        raise UserError(f"unknown flag --{error.flagname}; {hint}") from error
    except flags.Error as error:
        raise UserError(f"{one_line(error).rstrip('.')}; see --help.") from error
    if parser.help:
        print(_help(usage))
        return None
    if rest:
        hint = f"write --gin_file={rest[0]}" if rest[0].endswith(".gin") else "flags begin with --"
        raise UserError(f"unexpected argument {rest[0]!r}; {hint}.")
    return Options(**{option.name: getattr(parser, option.name) for option in dataclasses.fields(Options)})


def _rewrite_bindings(argv: list[str]) -> list[str]:
    """--gin.NAME=VALUE as --gin_bindings, which absl knows."""
    rewritten = []
    for position, argument in enumerate(argv):
        match = re.match(r"--?gin\.([^=]*)(=?)", argument)
        if match is None:
            rewritten.append(argument)
        elif not match[2]:
            following = next((text for text in argv[position + 1 : position + 2] if not text.startswith("-")), "VALUE")
            raise UserError(f"{argument}: the value follows an equals sign: {bindings.flag(match[1], following)}")
        else:
            rewritten.append(f"--gin_bindings={match[1]} = {argument[match.end() :]}")
    return rewritten


def _help(usage: str) -> str:
    lines = [usage.strip(), "", "Flags:", *(f"  --{name:<18}{text}" for name, (_, _, text) in FLAGS.items())]
    lines += ["", "What can be run:"]
    lines += [f"  {name:<26}{title}" for name, title in run_files().items()]
    return "\n".join(lines)


def run_files(command: str = "train") -> dict[str, str]:
    """The packaged gin files that a command runs as they are, with the first line of each: their headers say so."""
    found = {}
    for path in sorted(PACKAGED.rglob("*.gin")):
        name, text = path.relative_to(PACKAGED).as_posix(), path.read_text(encoding="utf-8")
        line = rf"python -m codegen2_jax\.{command} --gin_file={re.escape(name)}(?: --model DIR_OR_NAME)?"
        if re.search(rf"^# Run: +(?:\w+=\S+ )?{line}$", text, re.MULTILINE):
            found[name] = textwrap.shorten(text.split("\n", 1)[0].lstrip("# ").split(": ")[0], 90, placeholder=" ...")
    return found


class _Values(config_parser.ParserDelegate):
    """Makes plain data of the references and macros in a value, and notes them."""

    def __init__(self, config: Config, source: Source):
        self.config, self.source, self.line = config, source, 0

    def configurable_reference(self, scoped_configurable_name, evaluate):
        *scopes, selector = scoped_configurable_name.split("/")
        self.config.references.append((self.source, self.line, selector))
        return Reference(tuple(scopes), selector, evaluate)

    def macro(self, macro_name):
        if macro_name in (bindings.REQUIRED, "REQUIRED"):
            return Macro(bindings.REQUIRED)
        self.config.used_in.setdefault(macro_name, (self.source, self.line))
        return Macro(macro_name)


def read(options: Options) -> Config:
    """All statements of the files and flags, with every macro known and a JOB named; imports nothing."""
    if not options.gin_file:
        raise UserError(f"no --gin_file given; one of {', '.join(run_files())}.")
    config = Config()
    for name in options.gin_file:
        _read_file(config, name, options, (), "")
    for binding in options.gin_bindings:
        name, _, text = (part.strip() for part in binding.partition("="))
        _read_statements(config, Source(bindings.flag(name, text), "flag"), options, (), binding)
    for name in bindings.FROM_ENVIRONMENT:
        if os.environ.get(name) and _is_open(config, name):
            source = Source(f"the environment variable {name}", "environment")
            config.define(Given(name, os.environ[name], bindings.literal(os.environ[name]), source, 0))
    if options.model_dir is not None:
        _note_if_given_twice(config, "MODEL_DIR", f"--model_dir={options.model_dir}")
    if options.model_dir is not None or _is_open(config, "MODEL_DIR"):
        value = options.model_dir or f"runs/{_name_of(options)}"
        source = Source(f"--model_dir={value}", "environment" if options.model_dir is None else "flag")
        config.define(Given("MODEL_DIR", value, bindings.literal(value), source, 0))
    bindings.check_macros(config)
    if "JOB" not in config.macros:
        names = " ".join(options.gin_file)
        raise UserError(f"{names}: no JOB is named, so nothing can run; begin with one of {', '.join(run_files())}.")
    return config


def _is_open(config: Config, name: str) -> bool:
    """Whether a macro that the files know has no value yet."""
    return name in config.macros and config.macros[name].value in (None, Macro(bindings.REQUIRED))


def _read_file(config: Config, name: str, options: Options, including: tuple[Path, ...], at: str) -> None:
    """Finds a gin file and reads it."""
    places = [Path(), *map(Path, options.gin_search_paths), PACKAGED]
    path = next((place / name for place in places if (place / name).is_file()), None)
    if path is None:
        listed = {file.relative_to(place).as_posix() for place in places[1:] for file in place.rglob("*.gin")}
        hint = bindings.did_you_mean(name, listed | {file.name for file in Path().glob("*.gin")})
        searched = ", ".join(["the working directory", *options.gin_search_paths, str(PACKAGED)])
        raise UserError(f"{at}no gin file {name} in {searched}; {hint}")
    if path.resolve() in including:
        raise UserError(f"{at}{name} includes itself; remove one of the includes.")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{at}cannot read {name}: {one_line(error)}") from error
    source = Source(name, path=path.resolve(), packaged=PACKAGED in path.resolve().parents)
    config.sources.append(source)
    _read_statements(config, source, options, (*including, path.resolve()), text)


def _read_statements(config: Config, source: Source, options: Options, including: tuple[Path, ...], text: str) -> None:
    """Adds what a file or flag says to the config, what it includes at the place of the include."""
    values, lines = _Values(config, source), text.split("\n")
    try:
        parser = config_parser.ConfigParser(io.StringIO(text), values)
        while True:
            values.line = parser.current_token.start[0]
            statement = parser.parse_statement()
            if statement is None:
                return
            line = statement.location.line_num
            if isinstance(statement, config_parser.IncludeStatement):
                _read_file(config, statement.filename, options, including, f"{source.name} line {line}: ")
            elif isinstance(statement, config_parser.ImportStatement):
                if statement.module == "__gin__.dynamic_registration":
                    source.dynamic = True
                else:
                    source.imports[statement.bound_name()] = (statement.module, statement.partial_path(), line)
            elif isinstance(statement, config_parser.BlockDeclaration):
                config.references.append((source, line, statement.selector))
            else:
                _add_binding(config, source, statement, lines)
    except (SyntaxError, tokenize.TokenError, StopIteration, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise _syntax_error(source, lines, error) from error


def _add_binding(config: Config, source: Source, statement: config_parser.BindingStatement, lines: list[str]) -> None:
    scope, selector, argument, value, location = statement
    scoped = "/".join(filter(None, [scope, selector]))
    name = f"{scoped}.{argument}" if argument else scoped
    text = lines[location.line_num - 1].partition("=")[2].strip()
    given = Given(name, value, text, source, location.line_num)
    if source.kind == "flag":
        _note_if_given_twice(config, name, given.where)
    if argument:
        config.references.append((source, location.line_num, selector))
        config.bindings.append(Binding(tuple(scope.split("/")) if scope else (), selector, argument, given))
    else:
        config.define(given)


def _note_if_given_twice(config: Config, name: str, where: str) -> None:
    given = [config.macros[name]] if name in config.macros else []
    given += [binding.given for binding in config.bindings if binding.given.name == name]
    if any(earlier.source.kind == "flag" for earlier in given):
        config.warnings.append(f"{name} is given more than once; {where} counts.")


def _syntax_error(source: Source, lines: list[str], error: Exception) -> UserError:
    """What could not be read, and the remedy where it looks like a string without quotes."""
    unclosed = isinstance(error, tokenize.TokenError)
    line = error.args[1][0] if unclosed else getattr(error, "lineno", None) or len(lines)
    line = min(line, len(lines))
    statement = lines[line - 1].strip()
    name, equals, text = (part.strip() for part in statement.partition("="))
    given = Given(name, None, text, source, line)
    where = given.where if equals else f"{bindings.place(source, line)}: {statement}"
    bare = re.sub(r"\s+#.*", "", text)
    if equals and not bare:
        return UserError(f"{where}: there is no value behind the equals sign.")
    if equals and bare.casefold() in ("true", "false", "none", "null"):
        fixed = {"true": "True", "false": "False"}.get(bare.casefold(), "None")
        return UserError(f"{where}: write {given.written_as(fixed)}")
    if equals and re.fullmatch(r"""[^"'(){}\[\]@%#]*[^\W\d][^"'(){}\[\]@%#]*""", bare):
        return UserError(f"{where}: a string needs quotes that gin sees: {given.written_as(bindings.literal(bare))}")
    unclosed = unclosed or (bare[:1] in ("'", '"') and bare.count(bare[0]) % 2 == 1)
    reason = "a bracket or a quote is not closed" if unclosed else getattr(error, "msg", None) or one_line(error)
    reason = re.sub(r"(?s)^.*Failed to parse token", "cannot read", reason).rstrip(". ")
    return UserError(f'{where}: {reason}; a statement is NAME = VALUE, include "FILE", or an import.')


def build(config: Config, options: Options) -> tuple[object, str]:
    """The object that JOB makes, and the operative configuration: all values it is made of, defaults included."""
    targets = bindings.resolve(config)
    checked = bindings.check_bindings(config, targets)
    for warning in config.warnings + _without_effect(config, checked, options):
        print(f"warning: {warning}", file=sys.stderr)
    job = config.macros["JOB"]
    if not (isinstance(job.value, Reference) and job.value.evaluate):
        raise UserError(f"{job.where}: JOB is what a run makes: JOB = @module.Name()")
    _load(config, options)
    reference = gin.query_parameter("JOB/macro.value")
    try:
        # A macro would make it in the scope of the macro's name; this makes it in none.
        built = reference.scoped_configurable_fn()
    except ValueError as error:  # raised by the check of a value in some __post_init__
        raise UserError(one_line(error)) from error
    except RecursionError as error:
        raise UserError(f"{job.where}: something is made out of itself, by a ring of @name().") from error
    return built, gin.operative_config_str()


def _without_effect(config: Config, checked: bindings.Checked, options: Options) -> list[str]:
    """What the user typed in vain: it is not ignored in silence."""
    given = [binding.given for binding in config.bindings if id(binding.given) not in checked.bindings]
    given += [macro for name, macro in config.macros.items() if name not in checked.macros]
    files = " ".join(options.gin_file)
    return [f"{ignored.name} has no effect in {files}." for ignored in given if ignored.source.kind == "flag"]


def _load(config: Config, options: Options) -> None:
    """Has gin parse what was checked."""
    gin.clear_config()
    # Plain files only: gin's second reader takes "models/x.gin" for a file of a Python package named models, fails on a
    # folder of that name that is none, and logs an error for each place where a file is not.
    gin.config._FILE_READERS[:] = [(open, os.path.isfile)]
    gin.config._LOCATION_PREFIXES[:] = ["", *options.gin_search_paths, str(PACKAGED)]
    try:
        for name in options.gin_file:
            gin.parse_config_file(name)
        gin.parse_config(options.gin_bindings)
        for name, given in config.macros.items():
            if given.source.path is None and not given.source.name.startswith("--gin."):
                gin.bind_parameter(f"{name}/gin.macro.value", given.value)
        gin.finalize()
    except (ValueError, TypeError, KeyError, SyntaxError, OSError) as error:
        raise UserError(one_line(error)) from error


def without_places(text: str) -> str:
    """A configuration without the macros that only say where things lie."""
    names = "|".join(PLACES)
    return re.sub(rf"^(?:{names}) = (?:\\\n(?: .*\n)+|.*\n)", "", text, flags=re.MULTILINE)
