"""Transpool's pooling and attention operators for PyTorch.

    values, scores, positions = transpool.pool(x, scores, 64, name="successive_halving", base=20)
    out = transpool.attend(q, k, v, name="blockwise", chunk=512)

Every operator is one call of the dispatcher (``torch.ops.transpool.pool`` and ``.attend``), differentiable, and takes part
in ``torch.compile``. A wrong value is a ValueError, a wrong dtype or type a TypeError.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._library import load

__all__ = ["Pooled", "Pooling", "attend", "library", "list_attention", "list_pooling", "pool"]

library: str = str(load())
"""Path of the shared library that is in use."""


class Pooled(NamedTuple):
    """What pooling gives. Rows past min(k, length) are zero, with score 0 and position -1, and come last."""

    values: Tensor
    """(B, k, d), dtype of x"""
    scores: Tensor
    """(B, k), dtype of the scores"""
    positions: Tensor
    """(B, k) int64: the row of x that weighs most in each output row"""


@torch.compiler.assume_constant_result  # nothing in it for torch.compile to look into
def _text(options: dict[str, Any]) -> str:
    return json.dumps(options, sort_keys=True) if options else ""


def pool(x: Tensor, scores: Tensor, k: int, *, name: str = "successive_halving", lengths: Tensor | None = None,
         **options: Any) -> Pooled:
    """Maps n scored rows to k.

    x: (B, n, d) floating. scores: (B, n) float32 or float64, the higher the better. k: from 1 to n.
    name: a variant of ``list_pooling()``; options: its options. lengths: int64 (B,), the valid rows of each batch row.
    Raises ValueError or TypeError, which name the argument, its value and what is allowed.
    """
    return Pooled(*torch.ops.transpool.pool(x, scores, k, lengths, name, _text(options)))


def attend(q: Tensor, k: Tensor, v: Tensor, *, name: str = "full", lengths: Tensor | None = None, causal: bool = False,
           **options: Any) -> Tensor:
    """Attention of q (B, h, n, e) over k and v (B, h, m, e): (B, h, n, e).

    name: a variant of ``list_attention()``; options: its options. lengths: int64 (B,), the valid keys of each batch row.
    causal: no query sees a later key. Raises ValueError or TypeError.
    """
    if causal:
        options = {**options, "causal": True}
    return torch.ops.transpool.attend(q, k, v, lengths, name, _text(options))


class Pooling(torch.nn.Module):
    """A trainable pooling layer: the paper's linear scorer, sigmoid(Linear(d, 1)) + 1e-5, and a pooling operator.

    width: d of the rows. k: rows kept. name, options: as for ``pool``.
    """

    def __init__(self, width: int, k: int, *, name: str = "successive_halving", **options: Any) -> None:
        super().__init__()
        self.k = k
        self.name = name
        self.options = options
        self.scorer = torch.nn.Linear(width, 1)

    def score(self, x: Tensor) -> Tensor:
        """(B, n, d) -> (B, n) float32 (float64 for float64 rows), from 1e-5 to 1 + 1e-5."""
        logits = self.scorer(x).squeeze(-1)
        return torch.sigmoid(logits if logits.dtype == torch.float64 else logits.float()) + 1e-5

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Pooled:
        return pool(x, self.score(x), min(self.k, x.shape[1]), name=self.name, lengths=lengths, **self.options)

    def extra_repr(self) -> str:
        shown = {"k": self.k, "name": self.name, **self.options}
        return ", ".join(f"{key}={value!r}" for key, value in shown.items())


def list_pooling() -> list[dict[str, Any]]:
    """The pooling variants: name, description, source, options (allowed values, default, meaning), capabilities."""
    return json.loads(torch.ops.transpool.variants("pooling"))


def list_attention() -> list[dict[str, Any]]:
    """The attention variants, as ``list_pooling`` shows the pooling ones."""
    return json.loads(torch.ops.transpool.variants("attention"))
