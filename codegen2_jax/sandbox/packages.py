"""Packages of this interpreter that programs may import besides the standard library, such as NumPy."""

import importlib.machinery
import sys
from pathlib import Path

from codegen2_jax.errors import UserError

FOLDER = "/packages"  # where they lie in a jail


def find(names: tuple[str, ...]) -> list[str]:
    """The folders of packages, with the libraries that their wheels brought; nothing is imported.

    Raises:
      UserError: for a package that is not installed, or is a single file.
    """
    found = []
    for name in names:
        spec = importlib.machinery.PathFinder.find_spec(name, sys.path) if name.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise UserError(f"programs are to import {name!r}, which is no package here; pip install {name}.")
        folder = Path(next(iter(spec.submodule_search_locations))).resolve()
        libraries = folder.parent / f"{folder.name}.libs"
        found += [str(folder), *([str(libraries)] if libraries.is_dir() else [])]
    return found
