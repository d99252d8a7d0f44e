"""Verdicts on programs, by the sandbox; equal programs are run once."""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

from codegen2_jax.errors import UserError
from codegen2_jax.evaluation.subject import Call
from codegen2_jax.sandbox.programs import Limits, Program, Verdict
from codegen2_jax.sandbox.runner import Sandbox


def judge(
    programs: Sequence[Program], limits: Limits, call: Call, title: str, packages: Sequence[str] = ()
) -> list[Verdict]:
    """One verdict for each program, in their order.

    Nothing of a program counts but its own content, so a sample that was drawn again has the verdict of the first.
    """
    keys = [dataclasses.astuple(dataclasses.replace(program, name="")) for program in programs]
    first = {key: number for number, key in reversed(list(enumerate(keys)))}
    distinct = [programs[number] for number in sorted(first.values())]
    found: dict[Any, Verdict] = {}
    options = {"allow_unsafe_execution": call.allow_unsafe_execution, "packages": packages}
    with (
        Sandbox(workers=call.workers, limits=limits, **options) as sandbox,
        call.tracker.progress(f"{title}, running programs", len(distinct)) as progress,
    ):
        for number, verdict in enumerate(sandbox.judge(distinct), start=1):
            found[dataclasses.astuple(dataclasses.replace(distinct[number - 1], name=""))] = verdict
            progress.update(number)
    return [
        dataclasses.replace(found[key], name=program.name) for key, program in zip(keys, programs, strict=True)
    ]


def ready(limits: Limits, call: Call, packages: Sequence[str] = ()) -> None:
    """UserError where `judge` would refuse: no isolation, a package that is not here, a number of workers."""
    Sandbox(call.workers, limits, call.allow_unsafe_execution, packages).close()


def check(verdicts: Sequence[Verdict]) -> None:
    """UserError where programs could not be judged: a score that counts them either way would mean nothing."""
    unjudged = [verdict for verdict in verdicts if verdict.outcome == "infra"]
    if unjudged:
        raise UserError(
            f"{len(unjudged)} of {len(verdicts)} programs could not be judged ({unjudged[0].name}: "
            f"{unjudged[0].detail}); nothing was scored; score again by --only score."
        )


def outcomes(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """How often each outcome occurs."""
    return dict(sorted(collections.Counter(verdict.outcome for verdict in verdicts).items()))
