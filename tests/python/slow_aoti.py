"""The AOTInductor variant on a package of scripts/export_peers.py. Needs a C++ compiler, and tens of seconds."""

from __future__ import annotations

import argparse
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "scripts")]

import export_peers  # noqa: E402
import transpool  # noqa: E402


class Aoti(unittest.TestCase):
    file: str

    @classmethod
    def setUpClass(cls) -> None:
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        arguments = argparse.Namespace(out=Path(folder.name), batch=2, width=8, dtype="float32", device="cpu")
        cls.file = str(export_peers.export_aoti(arguments, 64, 16))

    def pool(self, x: torch.Tensor, scores: torch.Tensor, k: int = 16, **more: Any) -> transpool.Pooled:
        return transpool.pool(x, scores, k, name="aoti", file=self.file, against="successive_halving", **more)

    def test_it_computes_successive_halving(self) -> None:
        x, scores = torch.randn(2, 64, 8), torch.rand(2, 64)
        for found, expected in zip(self.pool(x, scores), transpool.pool(x, scores, 16, name="successive_halving")):
            torch.testing.assert_close(found, expected)

    def test_what_it_was_not_compiled_for_is_refused(self) -> None:
        x, scores = torch.randn(2, 64, 8), torch.rand(2, 64)
        for words, call in [
            ("float32 \\(2, 32, 8\\).*compiled for", lambda: self.pool(x[:, :32], scores[:, :32])),
            ("float64 \\(2, 64, 8\\).*compiled for", lambda: self.pool(x.double(), scores)),
            ("\\(2, 8, 8\\)", lambda: self.pool(x, scores, 8)),
            ("takes no lengths", lambda: self.pool(x, scores, lengths=torch.tensor([3, 4]))),
            ("not differentiable", lambda: self.pool(x.requires_grad_(), scores).values.sum().backward()),
        ]:
            with self.subTest(words), self.assertRaisesRegex(ValueError, words):
                call()


if __name__ == "__main__":
    unittest.main()
