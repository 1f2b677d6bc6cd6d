"""Figures and one self-contained HTML page from Transpool reports. Reads JSON only.

    python -m transpool_plots REPORT... --out DIR
"""
