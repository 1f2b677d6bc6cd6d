"""What scripts have in common that run kernels, case by case, under a program of the CUDA toolkit."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path


def arguments_of(doc: str | None, cases: Mapping[str, Callable[[], None]], out: str, option: str, program: str,
                 more: Callable[[argparse.ArgumentParser], None] = lambda parser: None) -> argparse.Namespace:
    """Of such a script: `--out`, `--cases`, where `program` is (`option`, as arguments.program) and what `more` adds. With `--run CASE`,
    which is how the program is given the script itself, runs that case and ends."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(out), help="folder of the results (default: %(default)s)")
    parser.add_argument("--cases", nargs="+", choices=cases, metavar="CASE", default=list(cases), help="among: " + "; ".join(cases))
    parser.add_argument(option, dest="program", metavar="FILE", default=shutil.which(program) or f"/usr/local/cuda/bin/{program}",
                        help="default: %(default)s")
    parser.add_argument("--run", choices=cases, metavar="CASE", help=f"only run that case, which is what {program} is given")
    more(parser)
    arguments = parser.parse_args()
    if arguments.run:
        import measure_peers

        measure_peers.load_library()
        cases[arguments.run]()
        sys.exit(0)
    if not Path(arguments.program).is_file():
        parser.error(f"{option} {arguments.program}: there is no such program")
    return arguments


def layer_pass(batch: int, n: int, k: int, width: int, dtype: str, lengths: list[int] | None = None) -> None:
    """The fused pooling layer on random rows, forward and backward."""
    import torch

    kind = getattr(torch, dtype)
    x = torch.randn(batch, n, width, device="cuda", dtype=kind)
    weight, bias = (torch.randn(size, device="cuda", dtype=kind) / 16 for size in (width, 1))
    given = None if lengths is None else torch.tensor(lengths, device="cuda")
    floor, base, epsilon = 1e-5, 20.0, 0.0
    out, _, _, scores, leaves = torch.ops.transpool.successive_halving_layer(x, weight, bias, given, k, floor, base, True, True, epsilon)
    torch.ops.transpool.successive_halving_layer_backward(torch.randn_like(out), None, x, weight, bias, scores, leaves, floor, base, epsilon, kind)
