"""Traces as pictures: strips below one another, with the phases as a backdrop."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from bench.simulation.trace import Row, Trace

WIDTH, LEFT, RIGHT, TOP = 720, 46, 8, 16
STRIP, GAP = 120, 30

STYLE = """
text { font: 11px system-ui, sans-serif; fill: #52606d }
.title { font-weight: 600 }
.axis { stroke: #9aa5b1; stroke-width: 0.5 }
.phase { fill: #9aa5b1; fill-opacity: 0.14 }
polyline { fill: none; stroke-width: 1.3 }
.a { stroke: #00796b } .b { stroke: #d9822b } .c { stroke: #9aa5b1 }
text.a, text.b, text.c { stroke: none }
text.a { fill: #00796b } text.b { fill: #d9822b }
@media (prefers-color-scheme: dark) {
  text { fill: #b8c1cc } .a { stroke: #4db6ac } text.a { fill: #4db6ac }
}
"""


@dataclass(frozen=True, slots=True)
class Line:
    """A figure over time.

    Args:
        name: What it is called.
        figure: Takes it from a row; None where there is none.
        look: One of the classes of the style: a, b or c.
    """

    name: str
    figure: Callable[[Row], float | None]
    look: str


@dataclass(frozen=True, slots=True)
class Strip:
    """Figures that share an axis.

    Args:
        title: What the axis shows.
        lines: What is drawn, the last one on top, each with the trace it is taken from.
        logarithmic: Whether each step of the axis is ten times the one before.
    """

    title: str
    lines: Sequence[tuple[Line, Trace]]
    logarithmic: bool = False


OFFERED = Line("offered", lambda row: row.offered, "c")
GOODPUT = Line("answered in time", lambda row: row.goodput, "a")
IN_FLIGHT = Line("in flight", lambda row: row.in_flight, "b")
LIMIT = Line("limit", lambda row: row.limit, "a")
RTT = Line("taken", lambda row: row.rtt, "b")
BASELINE = Line("baseline", lambda row: row.baseline, "a")


def strips(trace: Trace) -> list[Strip]:
    """Return what is shown of one run."""

    def of(*lines: Line) -> list[tuple[Line, Trace]]:
        return [(line, trace) for line in lines]

    return [
        Strip("calls a second", of(OFFERED, GOODPUT)),
        Strip("calls", of(IN_FLIGHT, LIMIT), logarithmic=True),
        Strip("seconds", of(RTT, BASELINE), logarithmic=True),
    ]


def draw(title: str, trace: Trace, shown: Sequence[Strip]) -> str:
    """Return a picture of *shown*, with the phases of *trace* behind it."""
    height = TOP + len(shown) * (STRIP + GAP)
    svg = ET.Element("svg", xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {WIDTH} {height}", role="img")
    svg.set("aria-label", title)
    ET.SubElement(svg, "style").text = STYLE
    for number, strip in enumerate(shown):
        _Drawing(svg, trace, TOP + number * (STRIP + GAP)).strip(strip, names=number == 0)
    ET.indent(svg)
    return ET.tostring(svg, encoding="unicode") + "\n"


class _Drawing:
    def __init__(self, svg: ET.Element, trace: Trace, top: int) -> None:
        self._svg = svg
        self._trace = trace
        self._top = top
        self._end = trace.rows[-1].at

    def strip(self, strip: Strip, *, names: bool) -> None:
        """Draw *strip*, and the *names* of the phases."""
        self._phases(names=names)
        scale = _Scale([v for line, trace in strip.lines for v in _values(line, trace)], strip)
        for value in scale.ticks:
            y = self._y(scale, value)
            self._add("line", "axis", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y)
            self._text("", LEFT - 4, y + 4, f"{value:g}", end=True)
        self._text("title", LEFT, self._top + STRIP + 14, strip.title)
        for place, (line, trace) in enumerate(strip.lines):
            self._text(line.look, LEFT + 140 + 130 * place, self._top + STRIP + 14, line.name)
            for points in self._runs(scale, line, trace):
                self._add("polyline", line.look, points=points)

    def _phases(self, *, names: bool) -> None:
        for number, chapter in enumerate(self._trace.chapters):
            begin, width = self._x(chapter.begin), self._x(chapter.phase.seconds) - LEFT
            if number % 2 == 0:
                self._add("rect", "phase", x=begin, y=self._top, width=round(width, 1), height=STRIP)
            if names:
                y = self._top - 5 if number % 2 == 0 else self._top + 9
                self._text("", begin + 1, y, chapter.phase.name)

    def _runs(self, scale: _Scale, line: Line, trace: Trace) -> list[str]:
        """Return the points of *line*, in one row for each stretch in which there is a figure."""
        found: list[list[str]] = [[]]
        for row in trace.rows[::2]:
            value = line.figure(row)
            if value is None:
                found.append([])
            else:
                found[-1].append(f"{self._x(row.at):g},{self._y(scale, value):g}")
        return [" ".join(points) for points in found if len(points) > 1]

    def _x(self, seconds: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * seconds / self._end, 1)

    def _y(self, scale: _Scale, value: float) -> float:
        return round(self._top + STRIP * (1.0 - scale.place(value)), 1)

    def _add(self, kind: str, look: str, **attributes: object) -> ET.Element:
        attributes = {"class": look, **attributes} if look else attributes
        return ET.SubElement(self._svg, kind, {name: str(value) for name, value in attributes.items()})

    def _text(self, look: str, x: float, y: float, text: str, *, end: bool = False) -> None:
        anchor = {"text-anchor": "end"} if end else {}
        self._add("text", look, x=round(x, 1), y=round(y, 1), **anchor).text = text


class _Scale:
    """From a figure to its height, 0 to 1."""

    def __init__(self, values: Sequence[float], strip: Strip) -> None:
        self._logarithmic = strip.logarithmic
        highest = max(values)
        if strip.logarithmic:
            least = min(value for value in values if value > 0.0)
            low, high = math.floor(math.log10(least)), math.ceil(math.log10(highest))
            self._low, self._high = float(low), float(high)
            self.ticks = [10.0**power for power in range(low, high + 1)]
        else:
            step = 10.0 ** math.floor(math.log10(highest))
            self._low, self._high = 0.0, math.ceil(highest / step) * step
            self.ticks = [0.0, self._high / 2, self._high]

    def place(self, value: float) -> float:
        """Return the height of *value*; what is off the scale is at its end."""
        if self._logarithmic:
            value = math.log10(value) if value > 0.0 else self._low
        return max(0.0, min(1.0, (value - self._low) / (self._high - self._low)))


def _values(line: Line, trace: Trace) -> list[float]:
    figures = (line.figure(row) for row in trace.rows)
    return [figure for figure in figures if figure is not None]
