#!/usr/bin/env python3
"""Whether our kernels access memory as they may: compute-sanitizer over all of them, forward and backward, by each of its tools.

    python scripts/sanitize_kernels.py --out out/sanitizer        # on a machine with a CUDA device and compute-sanitizer
    python scripts/sanitize_kernels.py --tools racecheck --cases softsort lsh

Cases are small, of sizes that reach each form of a kernel: lengths, rows that no pack of 16 bytes divides, few and many leaves.
Each runs once under each tool, without a caching allocator, so that what is out of bounds of a tensor is out of bounds of an
allocation. Writes table.md, and what a tool has printed of a case that is not clean. Exit code 1: something was found, or a
case did not end. The operators' library is TRANSPOOL_LIBRARY, or lib/ of a bundle, or the newest build.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))

import kernel_cases  # noqa: E402

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
OURS = ["--kernel-name", "kns=transpool"]


class Size(NamedTuple):
    batch: int
    n: int
    k: int
    width: int
    padded: bool = False


SMALL = (Size(2, 700, 130, 96), Size(3, 1000, 64, 61, padded=True))
TINY = (Size(1, 200, 70, 32), Size(2, 150, 9, 5, padded=True))


def pool_once(name: str, options: str, dtype: str, size: Size) -> None:
    import torch

    x = torch.randn(size.batch, size.n, size.width, device="cuda", dtype=getattr(torch, dtype), requires_grad=True)
    scores = torch.rand(size.batch, size.n, device="cuda", dtype=torch.float64 if dtype == "float64" else torch.float32, requires_grad=True)
    lengths = torch.tensor([(size.n * (b + 1)) // size.batch - b for b in range(size.batch)], device="cuda") if size.padded else None
    values, pooled_scores, _ = torch.ops.transpool.pool(x, scores, size.k, lengths, name, options)
    (values.double().square().sum() + pooled_scores.double().sum()).backward()


def pool(name: str, options: str = "", sizes: Sequence[Size] = SMALL, dtypes: Sequence[str] = ("float32", "bfloat16", "float64")) -> Callable[[], None]:
    def run() -> None:
        for dtype in dtypes:
            for size in sizes:
                pool_once(name, options, dtype, size)

    return run


def attend(name: str, options: str = "") -> Callable[[], None]:
    def run() -> None:
        import torch

        for dtype, lengths in ((torch.bfloat16, None), (torch.bfloat16, [700, 333]), (torch.float32, [1, 513])):
            q, k, v = (torch.randn(2, 700, 3, 64, device="cuda", dtype=dtype).transpose(1, 2).requires_grad_() for _ in range(3))
            given = None if lengths is None else torch.tensor(lengths, device="cuda")
            torch.ops.transpool.attend(q, k, v, given, name, options).double().square().sum().backward()

    return run


def layer(k: int, dtype: str) -> Callable[[], None]:
    def run() -> None:
        kernel_cases.layer_pass(2, 1024, k, 128, dtype)
        kernel_cases.layer_pass(2, 1000, k, 61, dtype, [999, 17])

    return run


# By racecheck, which takes minutes for what else takes seconds, a case a number of leaves.
ROUNDS = {"no round": Size(2, 64, 64, 64), "2 leaves": Size(1, 512, 256, 64), "8 leaves": Size(1, 1024, 128, 64), "64 leaves": Size(1, 1024, 16, 64),
          "512 leaves": Size(2, 700, 2, 37, padded=True), "first round shared": Size(2, 2500, 300, 24, padded=True)}
CASES: dict[str, Callable[[], None]] = {
    **{f"successive_halving, {rounds}": pool("successive_halving", sizes=(size,)) for rounds, size in ROUNDS.items()},
    "successive_halving, skip": pool("successive_halving", '{"skip": "auto"}', sizes=(ROUNDS["8 leaves"],)),
    "successive_halving, by score": pool("successive_halving", '{"keep_order": false}', sizes=(ROUNDS["8 leaves"],)),
    "successive_halving, cluster": pool("successive_halving", sizes=(Size(1, 11500, 1438, 8),), dtypes=("float32",)),
    "successive_halving, cluster, by score": pool("successive_halving", '{"keep_order": false}', sizes=(Size(1, 11900, 1490, 8, padded=True),),
                                                  dtypes=("float32",)),
    "successive_halving, global": pool("successive_halving", sizes=(Size(1, 70000, 8750, 8),), dtypes=("float32",)),
    "pooling layer, few leaves": layer(256, "bfloat16"),
    "pooling layer, many leaves": layer(10, "bfloat16"),
    "pooling layer, float32": layer(64, "float32"),
    "pooling layer, float64": layer(64, "float64"),
    "hard_topk": pool("hard_topk"),
    "hard_topk, by score": pool("hard_topk", '{"keep_order": false, "gradient": "straight_through"}'),
    "hard_topk, long rows": pool("hard_topk", sizes=(Size(1, 40000, 2500, 8),), dtypes=("float32",)),
    **{name: pool(name) for name in ("sigmoid_threshold", "lapsum", "sparsemap_topk", "sander_p43", "coordinate_descent")},
    "iterative_softmax": pool("iterative_softmax"),
    "iterative_softmax, alpha 1": pool("iterative_softmax", '{"alpha": 1}'),
    "softsort": pool("softsort"),
    "softsort, temperature 1": pool("softsort", '{"temperature": 1}'),
    "relaxed_subset, series": pool("relaxed_subset"),
    "relaxed_subset, by column": pool("relaxed_subset", '{"temperature": 0.001}', sizes=(Size(2, 700, 40, 96), Size(3, 1000, 33, 61, padded=True))),
    "soft_topk": pool("soft_topk", sizes=TINY),
    "soft_topk, temperature 0.1": pool("soft_topk", '{"temperature": 0.1}', sizes=TINY),
    "rows beyond 2^20": pool("successive_halving", sizes=(Size(1, 2**20 + 1, 2**19, 4),), dtypes=("float32",)),
    "blockwise": attend("blockwise", '{"chunk": 128}'),
    "sliding_window": attend("sliding_window", '{"window": 128}'),
    "lsh": attend("lsh", '{"seed": 1, "bucket": 32}'),
}


class Outcome(NamedTuple):
    case: str
    tool: str
    verdict: str  # "clean", or what was found
    seconds: float
    output: str


def verdict_of(output: str, code: int) -> str:
    """From what compute-sanitizer printed; each tool ends with a summary, unless it was ended. Reads in others' kernels alone of what
    no kernel has written are told, but are no finding: products of cuBLAS write in bulk, which initcheck does not see."""
    summaries = re.findall(r"(ERROR|RACECHECK) SUMMARY: (.*)", output)
    if not summaries:
        return f"did not end (exit code {code})"
    unwritten = re.findall(r"Uninitialized __global__ memory read.*\n.* at (.*)", output)
    counts = [int(count) for count in re.findall(r"(\d+) (?:error|hazard)s?", summaries[-1][1])]
    if unwritten and counts == [len(unwritten)] and not any("transpool" in kernel for kernel in unwritten):
        return f"clean, but for {len(unwritten)} reads in kernels of others"
    if not counts or any(counts):
        return summaries[-1][1].strip()
    return "clean" if code == 0 else f"failed (exit code {code})"


def kernels_of(case: str, tool: str) -> list[str]:
    """Which kernels a tool looks at: ours, unless initialisation is followed, which starts in others' kernels; or where a case ends
    in a product of cuBLAS, at whose kernels racecheck ends with an internal error if it may not look at them."""
    return [] if tool == "initcheck" or case.startswith("soft_topk") else OURS


def sanitize(case: str, tool: str, sanitizer: str, limit: float) -> Outcome:
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9", "--print-limit", "1000000", "--show-backtrace", "device",
               *kernels_of(case, tool), sys.executable, __file__, "--run", case]
    begun = time.monotonic()
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit, env=environment)
        output, code = done.stdout + done.stderr, done.returncode
    except subprocess.TimeoutExpired as error:
        output, code = (error.stdout or b"").decode(errors="replace"), 124
    return Outcome(case, tool, verdict_of(output, code), time.monotonic() - begun, output)


def table(outcomes: Sequence[Outcome]) -> str:
    tools = [tool for tool in TOOLS if any(outcome.tool == tool for outcome in outcomes)]
    text = ["| case | " + " | ".join(tools) + " |", "|---|" + "---|" * len(tools)]
    for case in dict.fromkeys(outcome.case for outcome in outcomes):
        found = {outcome.tool: f"{outcome.verdict}, {outcome.seconds:.0f} s" for outcome in outcomes if outcome.case == case}
        text.append(f"| {case} | " + " | ".join(found.get(tool, "") for tool in tools) + " |")
    return "\n".join(text) + "\n"


def write(out: Path, outcomes: Sequence[Outcome]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(table(outcomes), encoding="utf-8")
    for outcome in outcomes:
        if not outcome.verdict.startswith("clean"):
            name = re.sub(r"[^a-z0-9_]+", "-", f"{outcome.case} {outcome.tool}".lower())
            (out / f"{name}.log").write_text(outcome.output[-200_000:], encoding="utf-8")


def main() -> int:
    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS), help="default: all")
        parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) // 2), help="at a time (default: %(default)s)")
        parser.add_argument("--limit", type=float, default=600, metavar="SECONDS", help="of a case under a tool (default: %(default)s)")

    arguments = kernel_cases.arguments_of(__doc__, CASES, "out/sanitizer", "--sanitizer", "compute-sanitizer", more)
    work = [(case, tool) for tool in arguments.tools for case in arguments.cases]
    outcomes: list[Outcome] = []
    with ThreadPoolExecutor(arguments.jobs) as pool_of_jobs:
        for outcome in pool_of_jobs.map(lambda job: sanitize(*job, arguments.program, arguments.limit), work):
            print(f"{outcome.tool} {outcome.case}: {outcome.verdict}, {outcome.seconds:.0f} s", file=sys.stderr, flush=True)
            outcomes.append(outcome)
            write(arguments.out, outcomes)
    print(arguments.out / "table.md")
    return 0 if all(outcome.verdict.startswith("clean") for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
