"""Finds the operators' shared library and loads it into torch."""

from __future__ import annotations

import os
from pathlib import Path

import torch

NAME = "libtranspool_operators.so"


def candidates() -> list[Path]:
    """Where the library may be, the first that exists counts: TRANSPOOL_LIBRARY (which must exist where it is set), beside
    this package, the builds of the checkout that this package lies in (the newest first)."""
    named = os.environ.get("TRANSPOOL_LIBRARY")
    if named:
        return [Path(named)]
    here = Path(__file__).resolve().parent
    built = sorted(here.parents[1].glob(f"build/*/lib/{NAME}"), key=lambda path: path.stat().st_mtime, reverse=True)
    return [here / NAME, *built]


def load() -> Path:
    """Loads the library and returns its path. Raises ImportError where there is none, or where it was built against
    another torch."""
    found = candidates()
    path = next((path for path in found if path.is_file()), None)
    if path is None:
        looked = ", ".join(str(path) for path in found)
        raise ImportError(f"transpool: {NAME} is not there (looked at {looked}); build it with scripts/setup, or name it in "
                          "TRANSPOOL_LIBRARY")
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        raise ImportError(f"transpool: {path} does not load into torch {torch.__version__}; build it against this "
                          f"torch: {error}") from error
    return path
