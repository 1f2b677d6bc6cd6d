"""The program behind `transpool plot`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .cells import sweeps_of
from .reports import ReportError, read_reports

_DONE, _USAGE_ERROR = 0, 2


def _arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="transpool plot", description="Figures and one self-contained HTML page.")
    parser.add_argument("reports", nargs="+", metavar="REPORT", type=Path, help="report.json, or the folder that holds it")
    parser.add_argument("--out", required=True, metavar="DIR", type=Path, help="where figures and index.html go")
    return parser.parse_args(given)


def _draw(reports: list[Path], out: Path) -> list[Path]:
    # Imported here, so that a report that is wrong is named before a library that is missing.
    sweeps = sweeps_of(read_reports(reports))
    from . import figures, page, style

    style.apply()
    sections = [(sweep, figures.draw_sweep(sweep)) for sweep in sweeps]
    out.mkdir(parents=True, exist_ok=True)
    written = [path for _, drawings in sections for drawing in drawings for path in figures.write(drawing, out)]
    index = out / "index.html"
    index.write_text(page.page(sections), encoding="utf-8")
    return [*written, index]


def main(given: list[str] | None = None) -> int:
    arguments = _arguments(given)
    try:
        written = _draw(arguments.reports, arguments.out)
    except ReportError as error:
        print(f"transpool: {error}", file=sys.stderr)
        return _USAGE_ERROR
    except OSError as error:
        print(f"transpool: {error.filename}: {error.strerror}", file=sys.stderr)
        return _USAGE_ERROR
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in {"matplotlib", "numpy"}:
            raise
        remedy = "run scripts/setup, or name a Python that has it in TRANSPOOL_PYTHON"
        print(f"transpool: {sys.executable} has no {error.name}, which the figures need: {remedy}", file=sys.stderr)
        return _USAGE_ERROR
    for path in written:
        print(path)
    return _DONE


if __name__ == "__main__":
    sys.exit(main())
