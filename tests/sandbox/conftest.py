"""The real jail where there is one; elsewhere these tests say what is missing."""

import pytest

from codegen2_jax.errors import UserError
from codegen2_jax.sandbox import isolation, self_test
from codegen2_jax.sandbox.programs import Limits, Program
from codegen2_jax.sandbox.runner import Sandbox


@pytest.fixture(scope="session")
def isolated():
    """Skips without bubblewrap, or where the kernel refuses its namespaces."""
    try:
        found = isolation.find()
        self_test.require(found)
    except UserError as error:
        pytest.skip(f"no isolation here: {error}")
    return found


@pytest.fixture(scope="session")
def sandbox(isolated):
    with Sandbox(2, Limits(cpu_seconds=3)) as sandbox:
        yield sandbox


@pytest.fixture
def verdict_on(sandbox):
    """judge(solution, tests, entry_point="f", **fields) -> Verdict."""

    def judge(solution, tests="", entry_point="f", **fields):
        return sandbox.judge_one(Program("it", solution, tests, entry_point, **fields))

    return judge
