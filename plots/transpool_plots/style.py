"""One look for all figures: a variant has the same colour and marker wherever it appears."""

from __future__ import annotations

from dataclasses import dataclass

import matplotlib

INK = "#1f2328"
MUTED = "#6b7280"
RULE = "#d8dce2"

# Okabe and Ito's colours, which stay apart for colour-blind readers; their yellow is too pale for lines on white.
_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7a5195"]
_MARKERS = ["o", "s", "D", "^", "v", "P", "X", "<", ">"]
_DASHES = ["-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (5, 1.5, 1.5, 1.5))]


@dataclass(frozen=True)
class Look:
    colour: str
    marker: str
    dash: object


def looks(variants: list[str], baseline: str | None) -> dict[str, Look]:
    """The baseline is grey and dashed, so that it stands apart from what is compared with it."""
    chosen = {}
    others = [variant for variant in variants if variant != baseline]
    for i, variant in enumerate(others):
        dash = _DASHES[(i // len(_COLOURS)) % len(_DASHES)]
        chosen[variant] = Look(_COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)], dash)
    if baseline is not None:
        chosen[baseline] = Look("#4b5563", "o", (0, (4, 2)))
    return chosen


def apply() -> None:
    matplotlib.use("Agg")
    matplotlib.rcParams.update({
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": MUTED,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": RULE,
        "grid.linewidth": 0.6,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "lines.linewidth": 1.7,
        "lines.markersize": 5,
        "figure.facecolor": "white",
        "savefig.dpi": 160,
        # The same report gives the same bytes.
        "svg.hashsalt": "transpool",
    })
