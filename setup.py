"""Puts the built operators' library beside the Python package: what pyproject.toml cannot say."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
NAME = "libtranspool_operators.so"


def built_library() -> Path:
    """TRANSPOOL_LIBRARY, else the one of the release build."""
    path = Path(os.environ.get("TRANSPOOL_LIBRARY") or ROOT / "build" / "release" / "lib" / NAME)
    if not path.is_file():
        sys.exit(f"{path} is not there; build it first with scripts/setup, or name it in TRANSPOOL_LIBRARY")
    return path


class BuildWithLibrary(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return  # the package then finds the library in the checkout's build folder
        copy = Path(self.build_lib) / "transpool" / NAME
        shutil.copyfile(built_library(), copy)
        # LibTorch is in the process already when the library is loaded; the path serves whoever loads it first.
        patchelf = shutil.which("patchelf") or "patchelf"
        subprocess.run([patchelf, "--set-rpath", "$ORIGIN/../torch/lib", str(copy)], check=True)


class AnyPython(bdist_wheel):
    """The library is tied to the platform and to torch, and to no version of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


class WithLibrary(Distribution):
    def has_ext_modules(self) -> bool:
        return True


setup(
    distclass=WithLibrary,
    cmdclass={"build_py": BuildWithLibrary, "bdist_wheel": AnyPython},
    # build/ is CMake's: build/NAME holds one build each.
    options={"build": {"build_base": "build/python"}, "bdist_wheel": {"bdist_dir": "build/python/wheel"}},
)
