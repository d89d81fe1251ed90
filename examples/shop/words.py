"""Figures as people read them."""

from __future__ import annotations

import math


def seconds(value: float) -> str:
    """Write a duration."""
    if math.isnan(value):
        return "-"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.3g} s"


def share(part: float, whole: float, digits: int = 1) -> str:
    """Write a share of something as a percentage; nothing of nothing is a dash."""
    return f"{part / whole:.{digits}%}" if whole else "-"


def times(ratio: float) -> str:
    """Write how many times as much something is."""
    return f"{ratio:,.0f}x" if ratio >= 10 else f"{ratio:.1f}x"
