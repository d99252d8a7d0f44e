"""What tests that start whole runs share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """One cache of data and one of compiled programs for all runs, whichever worker starts them: children are dear."""
    base = tmp_path_factory.getbasetemp()
    folder = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    return os.environ | {
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "CODEGEN2_JAX_CACHE": str(folder / "caches" / "data"),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "caches" / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PLATFORMS": "cpu",
        "CODEGEN2_JAX_KEEP_ALLOCATOR": "1",
    }
