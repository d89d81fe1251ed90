"""Line plots as inline SVG, by hand: coloured by the page's style sheet, so they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import TypeAlias

from examples.shop.figures import Span, Transition

Points: TypeAlias = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 960, 280
LEFT, RIGHT, TOP, BOTTOM = 76, 96, 26, 44
_STRIP_HEIGHT = 56
# Two end labels closer than this would overlap.
_LABEL_HEIGHT = 15


@dataclass(frozen=True, slots=True)
class Line:
    """One run's line: its points, and the words at its end."""

    name: str
    points: Points
    label: str


@dataclass(frozen=True, slots=True)
class Axis:
    """A vertical axis: values to draw a grid line and a label at, the first and last being its ends."""

    title: str
    ticks: Sequence[float]
    text: Callable[[float], str]
    log: bool = False

    def place(self, value: float) -> float:
        """Return the height on the page of a value; beyond the ends, that of the end."""
        low, high = self.ticks[0], self.ticks[-1]
        value = min(max(value, low), high)
        share = math.log(value / low) / math.log(high / low) if self.log else (value - low) / (high - low)
        return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)


SHARE = Axis("share", (0.0, 0.25, 0.5, 0.75, 1.0), "{:.0%}".format)


@dataclass(frozen=True, slots=True)
class Along:
    """What goes from left to right: its title, and the unit of its values."""

    title: str
    unit: str


TIME = Along("seconds since the first request", " s")
LOAD = Along("what arrives, in capacities", "x")


def linear_axis(title: str, highest: float) -> Axis:
    """Return an axis from 0 to a round number above *highest*."""
    step = _round_step(highest / 4)
    count = max(1, math.ceil(highest * 1.02 / step))
    return Axis(title, [index * step for index in range(count + 1)], _number)


def seconds_axis(title: str, lowest: float, highest: float) -> Axis:
    """Return a logarithmic axis of durations that holds everything from *lowest* to *highest*."""
    choices = [m * 10.0**e for e in range(-4, 3) for m in (1, 3)]
    above = next(index for index, value in enumerate(choices) if value >= highest)
    below = max(index for index, value in enumerate(choices) if value <= lowest)
    return Axis(title, choices[below : above + 1], _duration, log=True)


def line_plot(
    title: str,
    axis: Axis,
    lines: Sequence[Line],
    spans: Sequence[Span],
    marks: Sequence[tuple[float, str]] = (),
    *,
    along: Along = TIME,
) -> str:
    """Draw lines, the fault shaded; *marks* are values with a dashed line and words to it."""
    body = [
        _phases(spans, HEIGHT - BOTTOM),
        _grid(axis),
        _along_axis(spans[-1].end, HEIGHT - BOTTOM, along.title),
        *(_mark(axis, value, word, spans[-1].end) for value, word in marks),
        *(_line(line, axis, spans[-1].end, along.unit) for line in lines),
        _end_labels(lines, axis),
    ]
    return _svg(title, HEIGHT, body)


def state_strip(title: str, transitions: Sequence[Transition], spans: Sequence[Span]) -> str:
    """Draw the states of one breaker as a strip over time; it starts closed."""
    end, bottom = spans[-1].end, _STRIP_HEIGHT - 30
    edges = [(0.0, "closed"), *((t.at, t.state) for t in transitions), (end, "")]
    body = [_phases(spans, bottom, names=False)]
    for (start, state), (until, _) in pairwise(edges):
        x, width = _x(start, end), _x(until, end) - _x(start, end)
        hover = f"<title>{state} from {start:.1f} to {until:.1f} s</title>"
        place = f'x="{x:.1f}" y="6" width="{max(width, 1.5):.1f}" height="16"'
        body.append(f'<rect class="state {state}" {place}>{hover}</rect>')
        if width > 7 * len(state):
            body.append(f'<text class="on-state" x="{x + width / 2:.1f}" y="18">{state}</text>')
    body.append(_along_axis(end, bottom))
    return _svg(title, _STRIP_HEIGHT, body)


def _svg(title: str, height: int, body: Sequence[str]) -> str:
    name = escape(title, quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{name}">{"".join(body)}</svg>'


def _x(at: float, end: float) -> float:
    return LEFT + min(max(at, 0.0), end) / end * (WIDTH - LEFT - RIGHT)


def _phases(spans: Sequence[Span], bottom: float, *, names: bool = True) -> str:
    end, parts = spans[-1].end, []
    for span in spans:
        x, width = _x(span.start, end), _x(span.end, end) - _x(span.start, end)
        fault = " fault" if span.faulty else ""
        top = TOP if names else 0
        size = f'width="{width:.1f}" height="{bottom - top:.1f}"'
        parts.append(f'<rect class="phase{fault}" x="{x:.1f}" y="{top}" {size}/>')
        if names:
            parts.append(
                f'<text class="phase-name{fault}" x="{x + width / 2:.1f}" y="{TOP - 9}">{span.name}</text>'
            )
    return "".join(parts)


def _grid(axis: Axis) -> str:
    parts = []
    for tick in axis.ticks:
        y = axis.place(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="tick" text-anchor="end" x="{LEFT - 8}" y="{y + 4:.1f}">{axis.text(tick)}</text>'
        )
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text class="axis" transform="translate(12 {middle:.0f}) rotate(-90)">{escape(axis.title)}</text>'
    )
    return "".join(parts)


def _along_axis(end: float, bottom: float, title: str = "") -> str:
    step = _round_step(end / 10)
    parts = [f'<line class="axis-line" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>']
    for index in range(int(end / step) + 1):
        x = _x(index * step, end)
        parts.append(f'<line class="axis-line" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(
            f'<text class="tick" text-anchor="middle" x="{x:.1f}" y="{bottom + 17}">{index * step:g}</text>'
        )
    if title:
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(f'<text class="axis" x="{middle:.0f}" y="{bottom + 37}">{escape(title)}</text>')
    return "".join(parts)


def _mark(axis: Axis, value: float, word: str, end: float) -> str:
    y, x = axis.place(value), _x(0, end)
    return (
        f'<line class="mark" x1="{x}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="mark-name" x="{x + 6}" y="{y - 5:.1f}">{escape(word)}</text>'
    )


def _line(line: Line, axis: Axis, end: float, unit: str) -> str:
    places = [(_x(at, end), axis.place(value), at, value) for at, value in line.points]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y, _, _ in places)
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="7"><title>{at:g}{unit}: {axis.text(value)}</title></circle>'
        for x, y, at, value in places
    )
    return f'<g class="line {escape(line.name)}"><path d="{path}"/>{dots}</g>'


def _end_labels(lines: Sequence[Line], axis: Axis) -> str:
    parts, lowest = [], -math.inf
    for line in sorted(lines, key=lambda line: axis.place(line.points[-1][1])):
        lowest = max(axis.place(line.points[-1][1]), lowest + _LABEL_HEIGHT)
        place = f'x="{WIDTH - RIGHT + 8}" y="{lowest + 4:.1f}"'
        parts.append(f'<text class="end {escape(line.name)}" {place}>{escape(line.label)}</text>')
    return "".join(parts)


def _round_step(atleast: float) -> float:
    power = 10.0 ** math.floor(math.log10(max(atleast, 1e-9)))
    return next(power * m for m in (1, 2, 5, 10) if power * m >= atleast * 0.999)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.3g}"


def _duration(value: float) -> str:
    return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"
