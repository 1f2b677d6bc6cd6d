#!/usr/bin/env python3
"""Exports Successive Halving as a PyTorch user writes it, vectorised over the batch, to stand beside ours in one table:

    .venv/bin/python scripts/export_peers.py --out out/peers
    build/release/bin/transpool run experiments/torch-compile-peer.json --out out/torch-compile-peer

Writes successive_halving.pt (TorchScript; any size, forward and backward) and, where a C++ compiler (on CUDA: Triton) is
there, successive_halving-N-K.pt2 for each size (AOTInductor, which is torch.compile's compiler; forward only).
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
from pathlib import Path

import torch


def halve(x: torch.Tensor, scores: torch.Tensor, positions: torch.Tensor, base: float,
          keep_order: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One round (arXiv 2010.15552, algorithm 1): rank i meets rank N-1-i, the pair is mixed by the softmax of base^score."""
    order = torch.argsort(scores, dim=1, descending=True, stable=True)
    half = scores.shape[1] // 2
    winners, losers = order[:, :half], order[:, half:].flip(1)
    high, low = scores.gather(1, winners), scores.gather(1, losers)
    weight = torch.sigmoid(torch.pow(base, high) - torch.pow(base, low))
    width = x.shape[2]
    column = weight.unsqueeze(2).to(x.dtype)
    mixed = (column * x.gather(1, winners.unsqueeze(2).expand(-1, -1, width)) +
             (1 - column) * x.gather(1, losers.unsqueeze(2).expand(-1, -1, width)))
    kept = weight * high + (1 - weight) * low
    positions = positions.gather(1, winners)
    if keep_order:
        back = torch.argsort(positions, dim=1)
        mixed = mixed.gather(1, back.unsqueeze(2).expand(-1, -1, width))
        kept, positions = kept.gather(1, back), positions.gather(1, back)
    return mixed, kept, positions


class SuccessiveHalving(torch.nn.Module):
    """Rounds over whole rows until k are left; n must be k times a power of two, all rows valid."""

    def __init__(self, base: float = 20.0, keep_order: bool = True) -> None:
        super().__init__()
        self.base = base
        self.keep_order = keep_order

    def forward(self, x: torch.Tensor, scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        positions = torch.arange(scores.shape[1], device=x.device).unsqueeze(0).expand_as(scores)
        # In float32 rounding changes who meets whom in later rounds; ours takes float64 for the scores as well.
        field = scores.double()
        while field.shape[1] > k:
            x, field, positions = halve(x, field, positions, self.base, self.keep_order)
        return x, field.to(scores.dtype), positions


class ForOneLength(torch.nn.Module):
    """With k as a constant, as AOTInductor takes it."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k
        self.pool = SuccessiveHalving()

    def forward(self, x: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.pool(x, scores, self.k)


def export_aoti(arguments: argparse.Namespace, n: int, k: int) -> Path:
    dtype = getattr(torch, arguments.dtype)
    x = torch.randn(arguments.batch, n, arguments.width, device=arguments.device, dtype=dtype)
    scores = torch.rand(arguments.batch, n, device=arguments.device)
    program = torch.export.export(ForOneLength(k), (x, scores))
    path = arguments.out / f"successive_halving-{n}-{k}.pt2"
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    return path


def size(text: str) -> tuple[int, int]:
    n, k = (int(part) for part in text.split(":"))
    if k < 1 or n < k or n % k != 0 or not math.log2(n // k).is_integer():
        raise argparse.ArgumentTypeError(f"{text}: allowed: N:K where N is K times a power of two")
    return n, k


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/peers"), help="folder of the files (default: %(default)s)")
    parser.add_argument("--sizes", type=size, nargs="+", default=[(4096, 256)], metavar="N:K",
                        help="rows in and out of each package (default: 4096:256)")
    parser.add_argument("--batch", type=int, default=4, help="batch of the packages (default: %(default)s)")
    parser.add_argument("--width", type=int, default=128, help="width of the packages' rows (default: %(default)s)")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"],
                        help="of the packages' rows (default: %(default)s)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="that the packages are compiled for")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    script = arguments.out / "successive_halving.pt"
    torch.jit.script(SuccessiveHalving()).save(str(script))
    print(script)
    if not any(shutil.which(compiler) for compiler in ("c++", "g++", "clang++")):
        print("no C++ compiler is there: no AOTInductor package", file=sys.stderr)
        return 0
    for n, k in arguments.sizes:
        print(export_aoti(arguments, n, k))
    return 0


if __name__ == "__main__":
    sys.exit(main())
