"""The stages of `cache_stages` on Apache Beam, on whichever runner the options name.

Every stage is a pipeline of its own; its results come back through files in the task's work folder. That folder, the
caches and the vocabulary must be at the same path on the driver and on every worker: one machine, NFS, a mounted
bucket. Beam comes with the extra `beam`, whose versions do not fit those of constraints.txt: docs/launch.md tells how.
"""

import contextlib
import difflib
import functools
import importlib.util
import io
import json
import shlex
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from codegen2_jax.data import cache_stages
from codegen2_jax.errors import UserError


def split_writer(flags: str | None, task_modules: Sequence[str]) -> Callable | None:
    """What `cache_writing.build` takes as `write_split`.

    flags: options of a pipeline in one text, "" for Beam's own defaults; None: Beam is not asked for, nor needed.
    """
    if flags is None:
        return None
    if importlib.util.find_spec("apache_beam") is None:
        raise UserError("--beam needs Apache Beam; in an environment of its own: pip install 'codegen2_jax[beam]'.")
    options = _options(flags)

    def write_split(task, name, directory, work, made_from, progress):
        work.mkdir(parents=True, exist_ok=True)
        return cache_stages.write_split(
            task, name, directory, work, made_from, progress,
            task_modules=tuple(task_modules),
            run=functools.partial(_run, options, work),
            repetitions=functools.partial(_repetitions, options, work),
        )  # fmt: skip

    return write_split


def _options(flags: str):
    """The options as Beam takes them; one that it does not know would be ignored, so it is an error."""
    from apache_beam import runners
    from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

    said = io.StringIO()  # argparse prints all options of Beam, then what is wrong
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            words = shlex.split(flags)
            options = PipelineOptions(words)
            known = options.get_all_options()
            unknown = sorted(set(options.get_all_options(retain_unknown_options=True)) - set(known))
            stray = [word for place, word in enumerate(words) if _has_no_effect(words, place, known)]
            runners.create_runner(options.view_as(StandardOptions).runner or "DirectRunner")
    except (ValueError, ImportError, SystemExit) as error:
        why = said.getvalue().rpartition("error: ")[2].strip() if isinstance(error, SystemExit) else str(error)
        raise UserError(f"--beam={flags!r} cannot be read as the options of a Beam pipeline: {why}.") from error
    if unknown or stray:
        near = difflib.get_close_matches([*unknown, *stray][0], known, n=1)
        meant = f"did you mean --{near[0]}?" if near else "an option is --NAME=VALUE."
        raise UserError(f"--beam={flags!r}: Beam knows no option {', '.join([*unknown, *stray])}; {meant}")
    return options


def _has_no_effect(words: list[str], place: int, options: dict) -> bool:
    """Whether a word is neither an option nor the value of one: Beam drops it, and without it nothing is different."""
    from apache_beam.options.pipeline_options import PipelineOptions

    if words[place].startswith("-"):
        return False
    try:
        return PipelineOptions(words[:place] + words[place + 1 :]).get_all_options() == options
    except SystemExit:  # an option lacks its value
        return False


def _run(options, work: Path, stage: Callable, items: Sequence[tuple]) -> list:
    """The results of a stage, in the order of its items."""
    import apache_beam as beam

    found = dict(_collect(options, work, items, beam.Map(_call, stage)))
    return [found[number] for number in range(len(items))]


def _repetitions(options, work: Path, stage: Callable, items: Sequence[tuple]) -> list[int]:
    """The positions of ids that stand at an earlier position too."""
    import apache_beam as beam

    class Later(beam.PTransform):
        """Numbered items -> the positions, after an error where there was one."""

        def expand(self, numbered):
            pairs = numbered | "Ids" >> beam.FlatMap(_pairs, stage)
            return pairs | "By id" >> beam.GroupByKey() | "Later ones" >> beam.FlatMap(_later)

    return [position for _, position in _collect(options, work, items, Later())]


def _collect(options, work: Path, items: Sequence[tuple], transform) -> list:
    """[key, result] of what `transform` makes of the numbered items; an error of a stage is raised here."""
    import apache_beam as beam

    folder = work / f"results-{uuid.uuid4().hex}"
    folder.mkdir()
    try:
        with beam.Pipeline(options=options) as pipeline:
            numbered = pipeline | "Items" >> beam.Create(list(enumerate(items))) | "Spread" >> beam.Reshuffle()
            lines = numbered | "Stage" >> transform | "Lines" >> beam.Map(json.dumps)
            lines | "Results" >> beam.io.WriteToText(str(folder / "results"))  # noqa: B018
        texts = [file.read_text(encoding="utf-8") for file in sorted(folder.iterdir())]
        found = [json.loads(line) for text in texts for line in text.splitlines()]
    except (RuntimeError, OSError, ValueError) as error:
        if "[while running '" in str(error):  # Beam's note on what a stage raised
            raise
        runner = options.get_all_options()["runner"] or "Beam's default runner"
        raise UserError(
            f"{runner} could not run the pipeline ({str(error).strip()[:300]}); check its options in --beam."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    errors = sorted(number for number, result in found if isinstance(result, dict) and "user_error" in result)
    if errors:
        raise UserError(next(result["user_error"] for number, result in found if number == errors[0]))
    return found


def _call(numbered: tuple[int, tuple], stage: Callable) -> tuple[int, object]:
    """A stage of one item; a mistake of the user travels as a result, so that it arrives as one line."""
    number, item = numbered
    try:
        return number, stage(*item)
    except UserError as error:
        return number, {"user_error": str(error)}


def _pairs(numbered: tuple[int, tuple], stage: Callable) -> Iterator[tuple[str, int]]:
    yield from stage(*numbered[1])


def _later(group: tuple[str, Iterable[int]]) -> Iterator[tuple[int, int]]:
    first, *later = sorted(group[1])
    return ((first, position) for position in later)
