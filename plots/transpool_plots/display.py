"""Axis values, figures and units as readers see them; the same rules as `transpool table`."""

from __future__ import annotations

import json
import math
from enum import IntEnum
from typing import Any


class Quantity(IntEnum):
    """What a unit measures, in the order in which readers look for it."""

    TIME = 0
    MEMORY = 1
    OPERATIONS = 2
    RATE = 3
    OTHER = 4


def quantity_of(unit: str) -> Quantity:
    if unit in {"s", "ms", "us", "µs", "μs", "ns", "min", "h"}:
        return Quantity.TIME
    if unit.endswith(("/s", "FLOPS")):
        return Quantity.RATE
    if unit in {"B", "bytes"} or unit.endswith("iB") or (len(unit) == 2 and unit[1] == "B"):
        return Quantity.MEMORY
    return Quantity.OPERATIONS if unit.endswith(("FLOP", "FLOPs")) else Quantity.OTHER


def show_value(value: Any) -> str:
    """`successive_halving(base=20)` for {"name": "successive_halving", "base": 20}."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "[" + ", ".join(map(show_value, value)) + "]"
    if not isinstance(value, dict):
        return json.dumps(value)
    options = ", ".join(f"{key}={show_value(option)}" for key, option in value.items() if key != "name")
    if not isinstance(value.get("name"), str):
        return "{" + ", ".join(f"{key}={show_value(option)}" for key, option in value.items()) + "}"
    return value["name"] + (f"({options})" if options else "")


def _decimals(value: float, digits: int) -> int:
    return 0 if value == 0 else min(12, max(0, digits - 1 - math.floor(math.log10(abs(value)))))


def show_number(value: float) -> str:
    """Four significant digits."""
    if not math.isfinite(value):
        return str(value)
    if value != 0 and (abs(value) >= 1e9 or abs(value) < 1e-4):
        return f"{value:.3e}"
    return f"{value:.0f}" if value == round(value) else f"{value:.{_decimals(value, 4)}f}"


def show_figure(value: float, low: float | None, high: float | None) -> str:
    """`12.34 ± 0.05`, with as many decimals as the interval supports."""
    half = 0.0 if low is None or high is None else (high - low) / 2
    if not (math.isfinite(value) and math.isfinite(half)) or half <= 0:
        return show_number(value)
    scale = max(abs(value), half)
    if scale >= 1e9 or scale < 1e-4:
        return f"{value:.3e} ± {half:.1e}"
    leading = half / 10 ** math.floor(math.log10(half))
    decimals = min(_decimals(half, 2 if leading < 2.95 else 1), _decimals(scale, 6))
    shown = f"{half:.{decimals}f}"
    return f"{value:.{decimals}f}" + (f" ± {shown}" if float(shown) > 0 else "")


def with_unit(text: str, unit: str) -> str:
    return text if unit in {"", "1"} else f"{text} {unit}"


def words(name: str) -> str:
    """A name as a heading: `peak_memory` reads `peak memory`."""
    return name.replace("_", " ")
