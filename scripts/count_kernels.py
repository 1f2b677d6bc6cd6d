#!/usr/bin/env python3
"""What each kernel of our operators does with the device: time, bytes, occupancy and why its warps wait, by Nsight Compute.

    python scripts/count_kernels.py --out out/counters            # on a machine with a CUDA device and ncu
    python scripts/count_kernels.py --cases soft_topk --ncu /usr/local/cuda/bin/ncu

Each case runs once under ncu, forward and backward, at the size of the paper's encoders (16 x 8192 -> 512, width 512; attention
of 4 x 8 heads of 64 over 8192 rows); the first launch of each kernel is counted. Writes counters.csv, as ncu gives it, and
table.md. Times under ncu are at base clocks and without other kernels before them: they say where time goes, not how long an
operator takes. The operators' library is TRANSPOOL_LIBRARY, or lib/ of a bundle, or the newest build.
"""

from __future__ import annotations

import csv
import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Callable

sys.path.insert(0, str(Path(__file__).resolve().parent))

import kernel_cases  # noqa: E402

BATCH, N, K, WIDTH = 16, 8192, 512, 512
STALL = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
STALLS = {"memory": "long_scoreboard", "shared memory": "short_scoreboard", "barrier": "barrier", "busy unit": "math_pipe_throttle",
          "latency": "wait", "other warp": "not_selected", "full queue to shared memory": "mio_throttle",
          "full queue to memory": "lg_throttle", "branch": "branch_resolving", "no instruction": "no_instruction", "sleep": "sleeping"}
COUNTERS = {"us": "gpu__time_duration.sum", "read": "dram__bytes_read.sum", "written": "dram__bytes_write.sum",
            "dram": "dram__throughput.avg.pct_of_peak_sustained_elapsed", "issue": "sm__inst_issued.avg.pct_of_peak_sustained_elapsed",
            "tensor": "sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active",
            "warps": "sm__warps_active.avg.pct_of_peak_sustained_active", "blocks": "launch__grid_size",
            "threads": "launch__block_size", "registers": "launch__registers_per_thread"}


def pool(name: str, dtype: str, options: str = "", n: int = N, k: int = K) -> Callable[[], None]:
    def run() -> None:
        import torch

        x = torch.randn(BATCH, n, WIDTH, device="cuda", dtype=getattr(torch, dtype), requires_grad=True)
        scores = torch.rand(BATCH, n, device="cuda", requires_grad=True)
        out = torch.ops.transpool.pool(x, scores, k, None, name, options)[0]
        out.backward(torch.randn_like(out))

    return run


def layer() -> None:
    kernel_cases.layer_pass(BATCH, N, K, WIDTH, "bfloat16")


def attend(name: str, options: str = "", padded: bool = False) -> Callable[[], None]:
    def run() -> None:
        import torch

        q, k, v = (torch.randn(4, N, 8, 64, device="cuda", dtype=torch.bfloat16).transpose(1, 2).requires_grad_() for _ in range(3))
        lengths = torch.tensor([2048, 4103, 8179, 8192], device="cuda") if padded else None
        out = torch.ops.transpool.attend(q, k, v, lengths, name, options)
        out.backward(torch.randn_like(out))

    return run


CASES: dict[str, Callable[[], None]] = {
    "successive_halving float32": pool("successive_halving", "float32"),
    "successive_halving bfloat16": pool("successive_halving", "bfloat16"),
    "successive_halving bfloat16 skip": pool("successive_halving", "bfloat16", '{"skip": "auto"}'),
    "successive_halving float32 10000 to 700": pool("successive_halving", "float32", n=10000, k=700),
    "successive_halving float32 65536 to 4096": pool("successive_halving", "float32", n=65536, k=4096),
    "pooling layer bfloat16": layer,
    "hard_topk float32": pool("hard_topk", "float32"),
    "sigmoid_threshold float32": pool("sigmoid_threshold", "float32"),
    "relaxed_subset bfloat16": pool("relaxed_subset", "bfloat16"),
    "softsort bfloat16": pool("softsort", "bfloat16"),
    "soft_topk float32": pool("soft_topk", "float32"),
    "blockwise padded": attend("blockwise", padded=True),
    "sliding_window": attend("sliding_window"),
    "lsh": attend("lsh", '{"seed": 1}'),
}


def count(case: str, ncu: str) -> list[dict[str, str]]:
    """One row a kernel, in the order of their first launches."""
    metrics = ",".join([*COUNTERS.values(), *(STALL.format(stall) for stall in STALLS.values())])
    ours = "regex:transpool|pytorch_flash" if "padded" in case else "regex:transpool"
    command = [ncu, "--csv", "--page", "raw", "--clock-control", "none", "--kernel-name-base", "demangled", "--kernel-id",
               f"::{ours}:1", "--metrics", metrics, sys.executable, __file__, "--run", case]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if done.returncode or start is None:
        print(f"count_kernels: {case}: ncu ended with {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}", file=sys.stderr)
        return []
    rows = list(csv.DictReader(io.StringIO("\n".join(lines[start:]))))
    units, kernels = rows[0], rows[1:]
    return [{"case": case, "kernel": short_name(row["Kernel Name"]), **{key: f"{row[key]} {units[key]}".strip() for key in row if "__" in key}}
            for row in kernels]


def short_name(demangled: str) -> str:
    """gather_kernel<float, 4> of void transpool::(anonymous namespace)::gather_kernel<float, (int)4>(...)."""
    name = re.sub(r"[(<]*(anonymous namespace|unnamed)[)>]*::|\(int\)|\(bool\)|transpool::|pytorch_flash::|^void ", "", demangled)
    name = re.sub(r"\(.*", "", name)
    return name if len(name) <= 60 else name.split("<")[0]


def number(text: str) -> float:
    """In seconds, bytes, percent or plainly."""
    value, _, unit = text.replace(",", "").partition(" ")
    scale = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9}.get(unit, 1.0)
    return float(value) * scale


def table(rows: list[dict[str, str]]) -> str:
    text = ["| case | kernel | us | read (MB) | written (MB) | DRAM (%) | issue slots (%) | tensor pipe (%) | warps (%) | blocks x threads | "
            "registers | warps wait for, cycles an instruction |", "|---|---|---:|---:|---:|---:|---:|---:|---:|---|---:|---|"]
    for row in rows:
        value = {key: number(row[counter]) for key, counter in COUNTERS.items() if row.get(counter)}
        stalls = sorted(((number(row[STALL.format(s)]), name) for name, s in STALLS.items() if row.get(STALL.format(s))), reverse=True)
        waits = ", ".join(f"{name} {cycles:.1f}" for cycles, name in stalls[:3])
        text.append(f"| {row['case']} | `{row['kernel']}` | {value['us'] * 1e6:.1f} | {value['read'] / 1e6:.1f} | {value['written'] / 1e6:.1f} | "
                    f"{value['dram']:.0f} | {value['issue']:.0f} | {value.get('tensor', 0):.0f} | {value['warps']:.0f} | "
                    f"{value['blocks']:.0f} x {value['threads']:.0f} | {value['registers']:.0f} | {waits} |")
    return "\n".join(text) + "\n"


def main() -> int:
    arguments = kernel_cases.arguments_of(__doc__, CASES, "out/counters", "--ncu", "ncu")
    rows: list[dict[str, str]] = []
    for case in arguments.cases:
        print(case, file=sys.stderr, flush=True)
        rows += count(case, arguments.program)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with (arguments.out / "counters.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["case", "kernel", *COUNTERS.values(), *(STALL.format(s) for s in STALLS.values())], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    (arguments.out / "table.md").write_text(table(rows), encoding="utf-8")
    print(arguments.out / "table.md")
    return 0 if rows else 1


if __name__ == "__main__":
    sys.exit(main())
