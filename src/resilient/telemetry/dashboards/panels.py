"""The kinds of panels that the dashboards are made of, in Grafana's classic schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from .queries import Query

__all__ = ["DATASOURCE", "Panel", "State", "figure", "graph", "heatmap", "timeline"]

DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}

State = tuple[str, str]
"""What a state is called, and its colour."""

_REF_IDS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel, wherever it stands.

    Attributes:
        kind: of visualization, as Grafana calls it.
        title: above it.
        description: what it shows, and what to make of it.
        queries: what it asks for.
        width: of 24 columns.
        height: in rows of 30 pixels.
        options: of its kind.
        defaults: how values are shown.
        link: the name of the dashboard that tells more; or empty.
    """

    kind: str
    title: str
    description: str
    queries: tuple[Query, ...]
    width: int
    height: int
    options: Mapping[str, Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    link: str = ""

    def to_dict(self, number: int, x: int, y: int) -> dict[str, Any]:
        """Return it as Grafana reads it, as panel *number* at *x*, *y*."""
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.description,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "datasource": DATASOURCE,
            "targets": [
                self._target(ref_id, query) for ref_id, query in zip(_REF_IDS, self.queries, strict=False)
            ],
            "fieldConfig": {"defaults": dict(self.defaults), "overrides": []},
            "options": dict(self.options),
            "links": _links(self.link),
        }

    def _target(self, ref_id: str, query: Query) -> dict[str, Any]:
        return {
            "refId": ref_id,
            "datasource": DATASOURCE,
            "expr": query.expr,
            "legendFormat": query.legend,
            "format": "heatmap" if self.kind == "heatmap" else "time_series",
            "editorMode": "code",
            "range": self.kind != "stat",
            "instant": self.kind == "stat",
        }


def graph(
    title: str,
    description: str,
    *queries: Query,
    width: int = 12,
    unit: str | None = None,
    warn: float | None = None,
    fail: float | None = None,
    stacked: bool = False,
    bars: bool = False,
    link: str = "",
) -> Panel:
    """Return lines over time.

    Args:
        title: above it.
        description: what it shows, and what to make of it.
        queries: what it asks for.
        width: of 24 columns.
        unit: of the values. None: that of the first query.
        warn: from which value on it is yellow. None: none.
        fail: from which value on it is red. None: none.
        stacked: whether the values are put on top of each other.
        bars: whether they are bars.
        link: the name of the dashboard that tells more; or empty.
    """
    unit = unit or queries[0].unit
    custom = {
        "drawStyle": "bars" if bars else "line",
        "lineWidth": 1,
        "fillOpacity": 60 if bars else 25 if stacked else 8,
        "showPoints": "never",
        "spanNulls": False,
        "axisSoftMin": 0,
        "stacking": {"group": "A", "mode": "normal" if stacked else "none"},
        "thresholdsStyle": {"mode": "off" if warn is fail is None else "dashed"},
    }
    options = {
        "legend": {
            "displayMode": "table",
            "placement": "bottom",
            "showLegend": True,
            "calcs": ["lastNotNull", "max"],
        },
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    defaults = {
        "unit": unit,
        "color": {"mode": "palette-classic"},
        "thresholds": _thresholds(warn, fail),
        "custom": custom,
    }
    return Panel("timeseries", title, description, queries, width, 8, options, defaults, link)


def figure(
    title: str,
    description: str,
    query: Query,
    *,
    width: int = 4,
    unit: str | None = None,
    warn: float | None = None,
    fail: float | None = None,
    link: str = "",
) -> Panel:
    """Return one large figure: what is so now. Its colour tells whether that is well.

    Args:
        title: above it.
        description: what it shows, and what to make of it.
        query: what it asks for.
        width: of 24 columns.
        unit: of the value. None: that of the query.
        warn: from which value on it is yellow. None: none.
        fail: from which value on it is red. None: none; with *warn* None, too, it has no colour.
        link: the name of the dashboard that tells more; or empty.
    """
    plain = warn is fail is None
    options = {
        "colorMode": "none" if plain else "background",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "textMode": "value",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    }
    defaults = {
        "unit": unit or query.unit,
        "color": {"mode": "thresholds"},
        "thresholds": _thresholds(warn, fail),
        "noValue": "-",
    }
    return Panel("stat", title, description, (query,), width, 4, options, defaults, link)


def timeline(
    title: str, description: str, query: Query, states: Sequence[State], *, width: int = 24, link: str = ""
) -> Panel:
    """Return a bar for each series, whose colour is the state it was in.

    Args:
        title: above it.
        description: what it shows, and what to make of it.
        query: what it asks for: ranks in *states*.
        states: from the one of rank 0 on.
        width: of 24 columns.
        link: the name of the dashboard that tells more; or empty.
    """
    mapping = {
        str(rank): {"index": rank, "text": text, "color": color} for rank, (text, color) in enumerate(states)
    }
    options = {
        "alignValue": "left",
        "mergeValues": True,
        "rowHeight": 0.8,
        "showValue": "auto",
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "single", "sort": "none"},
    }
    defaults = {
        "unit": "none",
        "color": {"mode": "thresholds"},
        "thresholds": _thresholds(None, None),
        "mappings": [{"type": "value", "options": mapping}],
        "custom": {"fillOpacity": 80, "lineWidth": 0, "spanNulls": False},
    }
    return Panel("state-timeline", title, description, (query,), width, 8, options, defaults, link)


def heatmap(title: str, description: str, query: Query, *, width: int = 12) -> Panel:
    """Return how durations are distributed over time: the darker a cell, the more of them.

    Args:
        title: above it.
        description: what it shows, and what to make of it.
        query: what it asks for: how many fell into each bucket.
        width: of 24 columns.
    """
    options = {
        "calculate": False,
        "cellGap": 1,
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "exponent": 0.5, "reverse": False},
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
        "filterValues": {"le": 1e-9},
        "legend": {"show": False},
        "rowsFrame": {"layout": "auto"},
        "tooltip": {"mode": "single", "show": True, "yHistogram": True, "showColorScale": False},
        "yAxis": {"axisPlacement": "left", "reverse": False, "unit": query.unit},
    }
    return Panel("heatmap", title, description, (query,), width, 8, options)


def _thresholds(warn: float | None, fail: float | None) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    steps += [
        {"color": color, "value": value}
        for color, value in (("yellow", warn), ("red", fail))
        if value is not None
    ]
    return {"mode": "absolute", "steps": steps}


def _links(name: str) -> list[dict[str, Any]]:
    if not name:
        return []
    chosen = ("datasource:queryparam", "service:queryparam", "instance:queryparam", "__url_time_range")
    url = f"/d/resilient-{name}?" + "&".join(f"${{{one}}}" for one in chosen)
    return [{"title": f"More on the dashboard {name}", "url": url, "targetBlank": False}]
