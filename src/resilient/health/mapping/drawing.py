"""Maps as text for those who draw: Mermaid and Graphviz.

Names and reasons come from anywhere. Whatever is in them, they are text in a picture, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from ...engine.finding import Status

__all__ = ["Arrow", "Shape", "dot", "mermaid"]

_LONGEST: Final = 80  # characters of a label's line; the rest is in the JSON form
_LONGEST_TIP: Final = 300

# Fill, line and text.
_COLOURS: Final = {
    Status.PASS: ("#e6f4ea", "#2e7d32", "#14351a"),
    Status.WARN: ("#fff4d6", "#b26a00", "#4d2e00"),
    Status.FAIL: ("#fde7e7", "#c62828", "#5c1010"),
    Status.UNKNOWN: ("#eceff1", "#607d8b", "#263238"),
}


class Shape(NamedTuple):
    """A node to draw: *kind* is "service", "dependency" or "own"."""

    id: str
    name: str
    kind: str
    status: Status
    small: str
    tip: str


class Arrow(NamedTuple):
    """An edge to draw."""

    source: str
    target: str
    status: Status
    text: str
    critical: bool
    dotted: bool


def mermaid(shapes: Iterable[Shape], arrows: Iterable[Arrow]) -> str:
    """Return a flowchart of Mermaid's.

    Source: the grammar and `encodeEntities` of mermaid 11.
    """
    lines = ["flowchart LR"]
    names: dict[str, str] = {}
    for number, shape in enumerate(shapes):
        names[shape.id] = f"n{number}"
        before, after = _BRACKETS.get(shape.kind, ("[", "]"))
        label = "<br/>".join(_mermaid_text(line) for line in _lines(shape))
        lines.append(f'    n{number}{before}"{label}"{after}:::{shape.status}')
    strokes: dict[Status, list[str]] = {}
    known = (arrow for arrow in arrows if {arrow.source, arrow.target} <= names.keys())
    for number, arrow in enumerate(known):
        line = "-.->" if arrow.dotted else "==>" if arrow.critical else "-->"
        text = f'|"{_mermaid_text(_cut(arrow.text, _LONGEST))}"|' if arrow.text else ""
        lines.append(f"    {names[arrow.source]} {line}{text} {names[arrow.target]}")
        strokes.setdefault(arrow.status, []).append(str(number))
    for status, numbers in strokes.items():
        lines.append(f"    linkStyle {','.join(numbers)} stroke:{_COLOURS[status][1]}")
    for status, (fill, line, text) in _COLOURS.items():
        lines.append(f"    classDef {status} fill:{fill},stroke:{line},color:{text}")
    return "\n".join(lines) + "\n"


_BRACKETS: Final = {"service": ("([", "])"), "dependency": ("[(", ")]")}
_KEPT: Final = frozenset(" _.,-/()")


def _mermaid_text(text: str) -> str:
    # There are no backslashes, only entities. Nor ":", as a line with "style", ":" and ";" loses its end.
    written = "".join(
        letter if letter.isalnum() or letter in _KEPT else f"#{ord(letter)};" for letter in text
    )
    # The one statement that is found anywhere in a line, in quotes too.
    return written.replace("direction ", "direction#32;")


def dot(shapes: Iterable[Shape], arrows: Iterable[Arrow]) -> str:
    """Return a digraph for Graphviz.

    Source: the grammar of Graphviz' DOT language.
    """
    lines = [
        "digraph dependencies {",
        "    rankdir=LR;",
        '    node [style=filled, fontname="sans-serif"];',
        '    edge [fontname="sans-serif", fontsize=10];',
    ]
    names: dict[str, str] = {}
    for number, shape in enumerate(shapes):
        names[shape.id] = f"n{number}"
        fill, line, text = _COLOURS[shape.status]
        label = "\\n".join(_dot_text(one) for one in _lines(shape))
        tip = _dot_text(
            _cut(f"{shape.status}: {shape.tip}" if shape.tip else shape.status.value, _LONGEST_TIP)
        )
        form = _FORMS.get(shape.kind, "box")
        lines.append(
            f'    n{number} [label="{label}", shape={form}, fillcolor="{fill}", color="{line}", '
            f'fontcolor="{text}", tooltip="{tip}"];'
        )
    for arrow in arrows:
        if not {arrow.source, arrow.target} <= names.keys():
            continue
        words = [f'color="{_COLOURS[arrow.status][1]}"']
        if arrow.critical:
            words.append("penwidth=2")
        if arrow.dotted:
            words.append("style=dashed")
        if arrow.text:
            words.append(f'label="{_dot_text(_cut(arrow.text, _LONGEST))}"')
            words.append(f'tooltip="{_dot_text(_cut(arrow.text, _LONGEST_TIP))}"')
        lines.append(f"    {names[arrow.source]} -> {names[arrow.target]} [{', '.join(words)}];")
    return "\n".join([*lines, "}"]) + "\n"


_FORMS: Final = {"service": "ellipse", "dependency": "cylinder"}
# Labels have escapes of their own, and HTML's entities.
_IN_DOT: Final = str.maketrans({"\\": "\\\\", '"': '\\"', "&": "&amp;"})


def _dot_text(text: str) -> str:
    return text.translate(_IN_DOT)


def _lines(shape: Shape) -> list[str]:
    return [_cut(line, _LONGEST) for line in (shape.name, shape.small) if line]


def _cut(text: str, most: int) -> str:
    """Return *text* as one short line without anything that cannot be seen."""
    line = " ".join(text[: 4 * most].split())
    line = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line)
    return line if len(line) <= most else f"{line[: most - 1]}…"
