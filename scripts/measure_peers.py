#!/usr/bin/env python3
"""Our operators beside what PyTorch users write, in one process and interleaved; writes a report for transpool table.

    python scripts/measure_peers.py --out out/peers                 # the shapes of the operator table, on a GPU
    python scripts/measure_peers.py --device cpu --samples 5 --shapes pooling:2x256:32x64:float32
    transpool table out/peers --rows shape,dtype,pass,implementation

A shape is pooling:BATCHxN:KxWIDTH:DTYPE or attention:BATCHxHEADSxNxHEAD_WIDTH:DTYPE, with :padded behind it for batch rows
of several lengths, which blockwise attention and SDPA under a mask of keys are measured with. Within one shape and pass every
implementation is timed once a round, in random order, on inputs drawn anew for the round, after the L2 was overwritten;
first each is checked against a float64 form, and one that fails gets no time. Copy bandwidth and matrix product are
measured before. Needs torch alone; the operators' library is TRANSPOOL_LIBRARY, or lib/ of a bundle, or the newest build.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import re
import sys
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable

# Threads of OpenMP that sleep while they wait, as in workers of `transpool run`; it is read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parent))
import torch_peers as peers  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
PASSES = ("forward", "forward+backward")
HALVING, HARD, BLOCKWISE, FULL = "successive_halving", "hard_topk", "blockwise", "full"
GPU_SHAPES = ["pooling:16x8192:512x512:float32", "pooling:16x8192:512x512:bfloat16", "pooling:1x8192:512x512:float32",
              "pooling:64x2048:512x512:float32", "pooling:16x65536:4096x512:float32", "pooling:16x7001:333x512:float32",
              "attention:4x8x2048x64:bfloat16", "attention:4x8x4096x64:bfloat16", "attention:4x8x8192x64:bfloat16",
              "attention:4x8x8000x64:bfloat16", "attention:4x8x8192x64:bfloat16:padded"]
CPU_SHAPES = ["pooling:2x512:64x32:float32", "pooling:2x500:60x32:float32", "attention:1x2x256x16:float32"]
# Relative error of a row that counts as agreement; gradients add the rounding of both passes.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}
GRADIENT_FACTOR = 4
# Rounding decides who meets whom in late rounds, or which bucket a row falls into: those rows may differ altogether.
DECIDED_BY_ROUNDING = {HALVING: 0.98, "lsh": 0.9}


@dataclass(frozen=True)
class Shape:
    """What one group of measurements shares."""

    kind: str
    batch: int
    n: int
    dtype: torch.dtype
    k: int = 0
    width: int = 0
    heads: int = 0
    padded: bool = False

    @staticmethod
    def parse(text: str) -> Shape:
        pooling = re.fullmatch(r"pooling:(\d+)x(\d+):(\d+)x(\d+):(\w+)", text)
        attention = re.fullmatch(r"attention:(\d+)x(\d+)x(\d+)x(\d+):(\w+?)(:padded)?", text)
        found = pooling or attention
        dtype = getattr(torch, found[5], None) if found else None
        if found is None or dtype not in TOLERANCE:
            allowed = "pooling:BxN:KxD:DTYPE or attention:BxHxNxE:DTYPE[:padded], DTYPE float64, float32, bfloat16 or float16"
            raise argparse.ArgumentTypeError(f"{text}: allowed: {allowed}")
        a, b, c, d = (int(found[i]) for i in range(1, 5))
        if pooling and not 1 <= c <= b:
            raise argparse.ArgumentTypeError(f"{text}: K = {c} is out of range; allowed: 1 to N = {b}")
        if pooling:
            return Shape("pooling", a, b, dtype, k=c, width=d)
        return Shape("attention", a, c, dtype, width=d, heads=b, padded=bool(attention[6]))

    @property
    def label(self) -> str:
        if self.kind == "pooling":
            return f"{self.batch}x{self.n}->{self.k}x{self.width}"
        return f"{self.batch}x{self.heads}x{self.n}x{self.width}" + (" padded" if self.padded else "")

    def lengths(self, device: torch.device) -> Tensor:
        """From a quarter of n to all of it."""
        last = max(1, self.batch - 1)
        return torch.tensor([self.n // 4 + (self.n - self.n // 4) * b // last for b in range(self.batch)], device=device)

    def valid(self, device: torch.device) -> Tensor:
        """(batch, 1, n, 1): which rows of q, k and v are no padding."""
        return (torch.arange(self.n, device=device) < self.lengths(device)[:, None])[:, None, :, None]

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


@dataclass
class Inputs:
    """Leaves that gradients are taken of, and the cotangent of the output."""

    leaves: list[Tensor]
    cotangent: Tensor
    valid: Tensor | None = None  # rows of the output that are no padding, where some are

    def redraw(self, kind: str) -> None:
        with torch.no_grad():
            self.cotangent.normal_()
            if self.valid is not None:
                self.cotangent.mul_(self.valid)
            for leaf in self.leaves:
                leaf.normal_()
            if kind == "pooling":
                scores = self.leaves[1]
                # Distinct by construction: peers break ties in other ways.
                ranks = scores.argsort(1).argsort(1).float()
                scores.copy_((ranks + 0.25 + 0.5 * torch.rand_like(scores)) / scores.shape[1])

    def head(self, rows: int) -> Inputs:
        """The first batch rows in float64."""
        leaves = [leaf.detach()[:rows].double().requires_grad_() for leaf in self.leaves]
        return Inputs(leaves, self.cotangent[:rows].double(), self.valid if self.valid is None else self.valid[:rows])


Call = Callable[..., Tensor]


@dataclass
class Implementation:
    value: Any  # as the axis shows it: a name, or an object with a name and options
    family: str  # what it computes, which says the bound and the baseline
    call: Call
    form: Call  # the same in float64
    ours: bool = False
    unsupported: str = ""

    @property
    def name(self) -> str:
        return self.value if isinstance(self.value, str) else self.value["name"]

    @property
    def options(self) -> dict[str, Any]:
        return {} if isinstance(self.value, str) else {key: v for key, v in self.value.items() if key != "name"}


@dataclass
class Run:
    """Settings, clock and ceilings of this process."""

    device: torch.device
    samples: int
    random: random.Random
    chunk: int  # rows of a chunk of blockwise attention
    flush: Tensor | None = None
    launching: float = 1.0  # ms that the host took for the call before
    copy_rate: float = 0.0
    product_rates: dict[torch.dtype, float] = field(default_factory=dict)

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def milliseconds(self, call: Callable[[], Any]) -> float:
        if not self.cuda:
            start = time.perf_counter()
            call()
            return (time.perf_counter() - start) * 1e3
        if self.flush is None:
            self.flush = torch.empty(256 << 20, dtype=torch.uint8, device=self.device)
        start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        self.flush.zero_()
        # The device waits until the host should have launched the call, as in `transpool run`.
        torch.cuda._sleep(int(2e6 * min(20.0, 2 * self.launching + 0.1)))
        start_event.record()
        launched = time.perf_counter()
        call()
        self.launching = (time.perf_counter() - launched) * 1e3
        end_event.record()
        end_event.synchronize()
        return start_event.elapsed_time(end_event)

    def median_seconds(self, call: Callable[[], Any]) -> float:
        for _ in range(2):
            call()
        return median_of([self.milliseconds(call) for _ in range(11)])[0] / 1e3

    def measure_ceilings(self, dtypes: set[torch.dtype]) -> None:
        source = torch.zeros(1 << (30 if self.cuda else 26), dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        self.copy_rate = 2 * source.numel() / self.median_seconds(lambda: target.copy_(source))
        n = 8192 if self.cuda else 512
        for dtype in dtypes:
            a, b = (torch.randn(n, n, device=self.device).to(dtype) for _ in range(2))
            out = torch.empty_like(a)
            self.product_rates[dtype] = 2 * n**3 / self.median_seconds(lambda: torch.mm(a, b, out=out))


def median_of(samples: list[float]) -> tuple[float, float, float]:
    """Median and its distribution-free 95 % interval, from order statistics."""
    ordered, last = sorted(samples), len(samples) - 1
    spread = 1.96 * math.sqrt(len(samples)) / 2

    def at(rank: float) -> float:
        return ordered[min(max(int(rank), 0), last)]

    middle = (at(math.floor(last / 2)) + at(math.ceil(last / 2))) / 2
    return middle, at(math.floor(last / 2 - spread)), at(math.ceil(last / 2 + spread))


def load_library() -> Path:
    named = os.environ.get("TRANSPOOL_LIBRARY")
    name = "libtranspool_operators.so"
    built = sorted(ROOT.glob(f"build/*/lib/{name}"), key=lambda path: path.stat().st_mtime, reverse=True)
    found = [Path(named)] if named else [path for path in (ROOT / "lib" / name, *built) if path.is_file()]
    if not found:
        sys.exit(f"measure_peers: {name} is not there; build it with scripts/setup, or name it in TRANSPOOL_LIBRARY")
    torch.ops.load_library(str(found[0]))
    return found[0]


# --- what is measured --------------------------------------------------------------------------------------------------


def our_pooling(value: Any, shape: Shape) -> Implementation:
    name = value if isinstance(value, str) else value["name"]
    options = {} if isinstance(value, str) else {key: v for key, v in value.items() if key != "name"}
    text = json.dumps(options) if options else ""

    def call(x: Tensor, scores: Tensor) -> Tensor:
        return torch.ops.transpool.pool(x, scores, shape.k, None, name, text)[0]

    form = call  # in float64
    keep_order = options.get("keep_order", True)
    if name == HALVING and set(options) <= {"base", "keep_order", "skip", "epsilon"}:
        form = lambda x, s: peers.successive_halving_form(x, s, shape.k, options.get("base", 20.0), keep_order)
    if name == HARD:
        form = lambda x, s: peers.hard_topk_form(x, s, shape.k, keep_order, options.get("gradient", "gated"))
    return Implementation(value, HALVING if name == HALVING else HARD, call, form, ours=True)


def pooling_peers(shape: Shape, cuda: bool) -> list[Implementation]:
    reason = "" if peers.halves_evenly(shape.n, shape.k) else "n is not k times a power of two"
    form = lambda x, s: peers.successive_halving_form(x, s, shape.k, 20.0, False)
    loop = lambda x, s: peers.per_row_loop(x, s, shape.k)
    batched = lambda x, s: peers.vectorised(x, s, shape.k)
    found = [Implementation("torch_per_row_loop", HALVING, loop, form, unsupported=reason),
             Implementation("torch_vectorised", HALVING, batched, form, unsupported=reason)]
    if cuda:
        compiled = torch.compile(batched, dynamic=False)
        found.append(Implementation("torch_compile", HALVING, compiled, form, unsupported=reason))
    hard = lambda x, s: peers.topk_gather(x, s, shape.k)
    return [*found, Implementation("torch_topk_gather", HARD, hard, lambda x, s: peers.hard_topk_form(x, s, shape.k, False, "none"))]


def our_attention(value: Any, chunk: int, lengths: Tensor | None, mask: Tensor | None) -> Implementation:
    name = value if isinstance(value, str) else value["name"]
    options = {} if isinstance(value, str) else {key: v for key, v in value.items() if key != "name"}
    text = json.dumps(options) if options else ""

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.ops.transpool.attend(q, k, v, None if lengths is None else lengths[: q.shape[0]], name, text)

    form = peers.attention_form if name == FULL else call
    if name == BLOCKWISE and options.get("chunk", 512) == chunk:
        form = peers.chunked(peers.attention_form, chunk, mask)
    return Implementation(value, BLOCKWISE if name == BLOCKWISE else name, call, form, ours=True)


def attention_peers(chunk: int, cuda: bool, mask: Tensor | None) -> list[Implementation]:
    names = list(peers.SDPA_BACKENDS) if cuda else ["sdpa_math"]
    full = [Implementation(name, FULL, peers.sdpa(name), peers.attention_form) for name in names]
    form = peers.chunked(peers.attention_form, chunk, mask)
    blockwise = [Implementation(f"blockwise_{name}", BLOCKWISE, peers.chunked(peers.sdpa(name), chunk, mask), form,
                                unsupported="takes no mask" if mask is not None and name == "sdpa_flash" else "")
                 for name in names if name != "sdpa_math" or not cuda]
    return blockwise if mask is not None else full + blockwise


def implementations_of(shape: Shape, arguments: argparse.Namespace, device: torch.device) -> list[Implementation]:
    cuda = device.type == "cuda"
    if shape.kind == "pooling":
        all_ = [our_pooling(value, shape) for value in arguments.pooling] + pooling_peers(shape, cuda)
    else:
        chunk = min(arguments.chunk, shape.n)
        lengths = shape.lengths(device) if shape.padded else None
        mask = shape.valid(device).transpose(2, 3) if shape.padded else None
        values = [{"name": BLOCKWISE, "chunk": chunk} if v == BLOCKWISE and chunk != 512 else v for v in arguments.attention
                  if not shape.padded or v == BLOCKWISE]
        all_ = [our_attention(value, chunk, lengths, mask) for value in values] + attention_peers(chunk, cuda, mask)
    return [one for one in all_ if re.search(arguments.only, one.name)]


def draw(shape: Shape, device: torch.device) -> Inputs:
    def empty(*sizes: int, dtype: torch.dtype = shape.dtype) -> Tensor:
        return torch.empty(*sizes, device=device, dtype=dtype)

    if shape.kind == "pooling":
        score_dtype = torch.float64 if shape.dtype == torch.float64 else torch.float32
        leaves = [empty(shape.batch, shape.n, shape.width), empty(shape.batch, shape.n, dtype=score_dtype)]
        inputs = Inputs(leaves, empty(shape.batch, shape.k, shape.width))
    else:
        # The layout that projections give: (B, n, h, e) seen as (B, h, n, e).
        q, k, v, cotangent = (empty(shape.batch, shape.n, shape.heads, shape.width).transpose(1, 2) for _ in range(4))
        inputs = Inputs([q, k, v], cotangent, shape.valid(device) if shape.padded else None)
    inputs.redraw(shape.kind)
    for leaf in inputs.leaves:
        leaf.requires_grad_()
    return inputs


def one_pass(call: Call, inputs: Inputs, backward: bool) -> list[Tensor]:
    """Output, and with `backward` the gradients; None where an input is not reached."""
    with torch.set_grad_enabled(backward):
        out = call(*inputs.leaves)
    if not backward:
        return [out]
    return [out, *torch.autograd.grad(out, inputs.leaves, inputs.cotangent, allow_unused=True)]


# --- correctness -------------------------------------------------------------------------------------------------------


def agreeing_share(found: Tensor, expected: Tensor, tolerance: float) -> float:
    """Share of rows (of elements, for the scores) whose distance is within the tolerance of a row's usual size."""
    found, expected = found.detach().double(), expected.detach()
    if found.dim() == 2:
        found, expected = found.unsqueeze(2), expected.unsqueeze(2)
    distance, size = (found - expected).norm(dim=-1), expected.norm(dim=-1)
    return (distance <= tolerance * (size + size.square().mean().sqrt())).double().mean().item()


def check(one: Implementation, inputs: Inputs, shape: Shape, backward: bool) -> tuple[str, dict[str, float]]:
    """"" or what is wrong, and the share of agreeing rows of each result. The first batch rows stand for all."""
    rows = min(shape.batch, 2 if shape.kind == "pooling" else 1)
    found = [result if result is None else result[:rows] for result in one_pass(one.call, inputs, backward)]
    expected = one_pass(one.form, inputs.head(rows), backward)
    if inputs.valid is not None:  # what stands in padded rows is nobody's
        found[0], expected[0] = (out.masked_fill(~inputs.valid[: out.shape[0]], 0) for out in (found[0], expected[0]))
    names = ["values", *(("x", "scores") if shape.kind == "pooling" else ("q", "k", "v"))]
    least = DECIDED_BY_ROUNDING.get(one.family, 1.0)
    shares: dict[str, float] = {}
    for name, a, b in zip(names, found, expected):
        if (a is None) != (b is None):
            return f"{name}: a gradient is there on one side alone", shares
        if a is None:
            continue
        tolerance = TOLERANCE[shape.dtype] * (1 if name == "values" else GRADIENT_FACTOR)
        shares[name] = agreeing_share(a, b, tolerance)
        if shares[name] < least:
            return f"{name}: {shares[name]:.4f} of the rows agree with the float64 form; allowed: {least}", shares
    return "", shares


# --- bound -------------------------------------------------------------------------------------------------------------


def least_work(one: Implementation, shape: Shape, backward: bool, chunk: int) -> tuple[float, float]:
    """Bytes that must be moved and FLOPs, by the mathematics and not by how it is done; see cost() of the operators."""
    element = torch.empty((), dtype=shape.dtype).element_size()
    if shape.kind == "attention":
        rows = float(shape.batch * shape.heads * shape.n * shape.width) * element
        # Sliding window and LSH count as their bytes alone: how many keys a row sees is theirs to say.
        keys = {FULL: shape.n, BLOCKWISE: min(one.options.get("chunk", chunk), shape.n)}.get(one.family, 0)
        flops = 4.0 * shape.batch * shape.heads * shape.n * keys * shape.width
        return rows * (4 + 7 * backward), flops * (1 + 2 * backward)
    x, out = (float(shape.batch * rows * shape.width) * element for rows in (shape.n, shape.k))
    scores = float(shape.batch * shape.n * 4)
    halving = one.family == HALVING
    read = (x if halving else out) + scores
    learns = halving or (one.ours and one.options.get("gradient", "gated") != "none")
    flops = 2.0 * shape.batch * shape.n * shape.width if halving else 0.0
    if not backward:
        return read + out, flops
    return read + out + out + x + (scores + read if learns else 0), 3 * flops


# --- records -----------------------------------------------------------------------------------------------------------


def summary(name: str, unit: str, samples: list[float], higher_is_better: bool, meaning: str) -> dict[str, Any]:
    value, low, high = median_of(samples)
    return {"name": name, "unit": unit, "value": value, "statistic": "median", "higher_is_better": higher_is_better,
            "interval": [low, high], "samples": samples, "meaning": meaning}


def new_record(one: Implementation, shape: Shape, pass_: str, run: Run) -> dict[str, Any]:
    axes = {"operator": shape.kind, "shape": shape.label, "dtype": shape.dtype_name, "pass": pass_, "implementation": one.value}
    sizes = {"batch": shape.batch, "source_length": shape.n, "pooled_length": shape.k, "width": shape.width, "heads": shape.heads}
    configuration = {"level": "operator", "device": run.device.type, **axes,
                     **{key: value for key, value in sizes.items() if value}}
    identity = hashlib.sha1(json.dumps(configuration, sort_keys=True).encode()).hexdigest()[:16]
    backend = one.name.removeprefix("blockwise_") if not one.ours else torch.ops.transpool.backend(
        shape.kind, one.name, json.dumps(one.options) if one.options else "", run.device)
    return {"id": identity, "axes": axes, "seed": 0, "configuration": configuration, "status": "ok", "reason": "",
            "baseline": "", "environment": "", "started": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "seconds": 0.0, "summaries": [], "details": {"backend": {shape.kind: backend}, "family": one.family}}


def describe_times(record: dict[str, Any], one: Implementation, shape: Shape, times: list[float], run: Run) -> None:
    pass_ = record["axes"]["pass"]
    what = f"one {pass_} pass, interleaved with the other implementations"
    record["summaries"].insert(0, summary("time", "ms", times, False, what))
    if one.options.get("skip", "off") != "off":
        return  # reads a share of the rows that is not known here
    bytes_, flops = least_work(one, shape, pass_ == PASSES[1], run.chunk)
    rate = run.product_rates[shape.dtype]
    copy, product = bytes_ / run.copy_rate * 1e3, flops / rate * 1e3
    record["details"]["roofline"] = {
        "bytes": bytes_, "flops": flops, "copy_bytes_per_second": run.copy_rate, "product_flops_per_second": rate,
        "bound_ms": max(copy, product), "bound_by": "copy" if copy >= product else "matrix product"}
    shares = [100 * max(copy, product) / sample for sample in times]
    record["summaries"].append(summary("bound_share", "%", shares, True, f"measured bound over time, {what}"))


def measure_workspace(one: Implementation, inputs: Inputs, backward: bool) -> dict[str, Any]:
    """Of the caching allocator, in a pass of its own."""
    torch.cuda.reset_peak_memory_stats()
    results = one_pass(one.call, inputs, backward)
    results = [result if result is None else result.detach() for result in results]
    torch.cuda.synchronize()
    mib = (torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()) / 2**20
    return {"name": "workspace", "unit": "MiB", "value": mib, "statistic": "max", "higher_is_better": False, "interval": None,
            "samples": [], "meaning": "peak of allocated tensor bytes beyond inputs and results"}


def prepare(one: Implementation, inputs: Inputs, shape: Shape, record: dict[str, Any], run: Run) -> bool:
    """Warms up, checks, measures memory; False where the record already says why there is no time."""
    backward = record["axes"]["pass"] == PASSES[1]
    if one.unsupported:
        record.update(status="unsupported", reason=one.unsupported)
        return False
    try:
        wrong, shares = check(one, inputs, shape, backward)
        record["details"]["agreeing_rows"] = shares
        if wrong:
            record.update(status="incorrect", reason=wrong)
            return False
        for _ in range(3):
            one_pass(one.call, inputs, backward)
        if run.cuda:
            record["summaries"].append(measure_workspace(one, inputs, backward))
    except torch.OutOfMemoryError as error:
        record.update(status="oom", reason=str(error).splitlines()[0])
    except Exception as error:  # a peer that does not run here costs its record alone
        lines = str(error).strip().splitlines()
        record.update(status="failed", reason=f"{type(error).__name__}: {lines[0] if lines else 'no message'}")
    run.wait()
    return record["status"] == "ok"


def link_baselines(all_: list[Implementation], records: list[dict[str, Any]]) -> None:
    """Each record is compared with the PyTorch form of the same family that is fastest here."""

    def time_of(record: dict[str, Any]) -> float:
        return next((s["value"] for s in record["summaries"] if s["name"] == "time"), math.inf)

    for one, record in zip(all_, records):
        wanted = one.family if one.family in {HALVING, HARD, BLOCKWISE} else FULL
        peers_ = [r for other, r in zip(all_, records) if not other.ours and other.family == wanted]
        best = min(peers_, key=time_of, default=None)
        if best is not None and best is not record and math.isfinite(time_of(best)):
            record["baseline"] = best["id"]


def measure_group(shape: Shape, pass_: str, all_: list[Implementation], run: Run) -> list[dict[str, Any]]:
    """All implementations of one shape and pass, interleaved."""
    inputs = draw(shape, run.device)
    backward = pass_ == PASSES[1]
    records = [new_record(one, shape, pass_, run) for one in all_]
    ready = []
    for one, record in zip(all_, records):
        start = time.monotonic()
        print(f"  {shape.kind} {shape.label} {shape.dtype_name} {pass_}: {one.value}", file=sys.stderr, flush=True)
        if prepare(one, inputs, shape, record, run):
            ready.append((one, record, []))
        record["seconds"] = time.monotonic() - start
    for _ in range(run.samples):
        inputs.redraw(shape.kind)
        run.random.shuffle(ready)
        for one, _record, times in ready:
            times.append(run.milliseconds(lambda one=one: one_pass(one.call, inputs, backward)))
    for one, record, times in ready:
        describe_times(record, one, shape, times, run)
    link_baselines(all_, records)
    return records


# --- report ------------------------------------------------------------------------------------------------------------


def describe_environment(run: Run) -> dict[str, Any]:
    environment: dict[str, Any] = {
        "device": run.device.type, "torch": torch.__version__, "cuda": torch.version.cuda or "none",
        "threads": torch.get_num_threads(), "python": sys.version.split()[0],
        "ceilings": {"copy_bytes_per_second": run.copy_rate,
                     "product_flops_per_second": {str(d).removeprefix("torch."): r for d, r in run.product_rates.items()}}}
    bundle = ROOT / "bundle.txt"
    if bundle.is_file():
        environment.update(line.split("=", 1) for line in bundle.read_text().splitlines() if line.startswith("commit="))
    if run.cuda:
        properties = torch.cuda.get_device_properties(run.device)
        environment["gpu"] = {"name": properties.name, "multiprocessors": properties.multi_processor_count,
                              "memory": f"{properties.total_memory >> 20} MiB"}
        environment["cudnn"] = torch.backends.cudnn.version()
    return environment


def write_report(folder: Path, arguments: argparse.Namespace, environment: dict[str, Any], records: list[dict[str, Any]]) -> Path:
    key = hashlib.sha1(json.dumps(environment, sort_keys=True).encode()).hexdigest()[:8]
    for record in records:
        record["environment"] = key
    experiment = {"name": "operator-peers", "description": "Our operators beside what PyTorch users write, interleaved",
                  "level": "operator", "device": arguments.device, "shapes": arguments.shapes, "samples": arguments.samples}
    report = {"schema_version": 1, "experiment": experiment, "environment": environment, "environments": {key: environment},
              "records": records}
    path, new = folder / "report.json", folder / "report.json.new"
    new.write_text(json.dumps(report, indent=1), encoding="utf-8")
    new.replace(path)
    return path


def variant(text: str) -> Any:
    """NAME, or NAME followed by a JSON object of options."""
    name, brace, rest = text.partition("{")
    if not brace:
        return text.strip()
    try:
        return {"name": name.strip(), **json.loads(brace + rest)}
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}; allowed: NAME or NAME followed by a JSON object") from error


def shape_text(text: str) -> str:
    Shape.parse(text)
    return text


def parse(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/operator-peers"), help="folder of the report (default: %(default)s)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shapes", type=shape_text, nargs="+", metavar="SHAPE", help="default: those of the operator table")
    parser.add_argument("--pooling", type=variant, nargs="+", metavar="VARIANT", help="ours, NAME or 'NAME {\"option\": value}'",
                        default=[HALVING, {"name": HALVING, "skip": "auto"}, HARD, {"name": HARD, "gradient": "none"}])
    parser.add_argument("--attention", type=variant, nargs="+", metavar="VARIANT", help="ours, as for --pooling",
                        default=[BLOCKWISE, "sliding_window", {"name": "lsh", "seed": 1}, FULL])
    parser.add_argument("--chunk", type=int, default=512, help="rows of a chunk of blockwise attention (default: %(default)s)")
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=list(PASSES))
    parser.add_argument("--only", default="", metavar="REGEX", help="implementations whose names hold a match")
    parser.add_argument("--samples", type=int, default=30, help="rounds (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(given)
    arguments.shapes = arguments.shapes or (GPU_SHAPES if arguments.device == "cuda" else CPU_SHAPES)
    if arguments.samples < 3:
        parser.error(f"--samples: {arguments.samples} is not allowed; allowed: 3 or more")
    return arguments


def main(given: list[str] | None = None) -> int:
    arguments = parse(given)
    load_library()
    torch.manual_seed(arguments.seed)
    run = Run(torch.device(arguments.device), arguments.samples, random.Random(arguments.seed), arguments.chunk)
    shapes = [Shape.parse(text) for text in arguments.shapes]
    run.measure_ceilings({shape.dtype for shape in shapes})
    environment = describe_environment(run)
    arguments.out.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    for shape in shapes:
        all_ = implementations_of(shape, arguments, run.device)
        for pass_ in arguments.passes:
            records += measure_group(shape, pass_, all_, run)
            path = write_report(arguments.out, arguments, environment, records)
        torch._dynamo.reset()
        if run.cuda:
            torch.cuda.empty_cache()
    print(path)
    wrong = [record for record in records if record["status"] not in {"ok", "unsupported"}]
    for record in wrong:
        print(f"{record['axes']}: {record['status']}: {record['reason']}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
