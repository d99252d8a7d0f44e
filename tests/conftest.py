"""Every test sees eight CPU devices and strict rank promotion; a test that needs no JAX does not pay for its import."""

import atexit
import importlib.abc
import importlib.util
import os
import shutil
import sys
import tempfile

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling takes most of the time of most tests, and what they compile runs for moments: let XLA not optimise it.
os.environ["XLA_FLAGS"] = f"--xla_backend_optimization_level=0 {os.environ.get('XLA_FLAGS', '')}".strip()
# Where the programs that tests start keep what they compile: one folder for all workers of a run, which ends with it.
PROGRAMS = "CODEGEN2_JAX_TEST_PROGRAMS"
if PROGRAMS not in os.environ:
    os.environ[PROGRAMS] = tempfile.mkdtemp(prefix="codegen2_jax-programs-")
    atexit.register(shutil.rmtree, os.environ[PROGRAMS], ignore_errors=True)


class _ConfigureJax(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Sets JAX's configuration the moment that somebody imports it, and so before its devices start.

    Environment variables would do as much here, but the programs that tests start would inherit eight devices.
    """

    def find_spec(self, name, path=None, target=None):
        if name != "jax":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("jax")
        self.loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        module.config.update("jax_num_cpu_devices", 8)
        module.config.update("jax_numpy_rank_promotion", "raise")


assert "jax" not in sys.modules, "JAX was imported before tests/conftest.py could configure it."
sys.meta_path.insert(0, _ConfigureJax())


@pytest.fixture
def program_environment(tmp_path):
    """The environment for a program that a test starts: this checkout importable from anywhere, nothing in the home."""
    checkout = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "CODEGEN2_JAX_"))}
    python_path = os.pathsep.join(filter(None, [checkout, os.environ.get("PYTHONPATH")]))
    added = {"HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "JAX_COMPILATION_CACHE_DIR": os.environ[PROGRAMS]}
    return kept | {"PYTHONPATH": python_path} | added
