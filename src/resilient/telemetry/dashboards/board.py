"""A dashboard: its rows of panels, the variables that choose among services and policies, and its links."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from ...policies.measures import BREAKER_TRANSITIONS
from .panels import DATASOURCE, Panel
from .queries import increase

__all__ = ["DOCS", "TAG", "WIDTH", "Board", "Row"]

WIDTH: Final = 24
"""Columns of the grid."""
DOCS: Final = "https://resilient-py.readthedocs.io/en/latest"
"""Where this documentation is."""
TAG: Final = "resilient"
"""What all dashboards are tagged with; by it they find each other."""

_SCHEMA: Final = 41  # the last one before dashboards got an API of their own; everything since reads it

_ANY: Final = '{__name__=~"resilient_.+"'
_CHOSEN: Final = 'job=~"$service", instance=~"$instance"'
_TRANSITIONS: Final = (
    ("open", "opened", "red"),
    ("half_open", "lets probes through", "yellow"),
    ("closed", "closed", "green"),
)


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under one title, from left to right, and on in the next line where one is full."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Board:
    """A dashboard.

    Attributes:
        name: in the command, and after "resilient-" in its address.
        title: as it is listed in Grafana.
        description: what it is for.
        rows: from above.
        pages: of the documentation, by what their links say.
        kinds: of the policies it shows, in snake case. None: of all.
        names: a query in PromQL whose series have the names to choose from as `resilient_policy_name`; empty:
            what has one of *kinds*.
    """

    name: str
    title: str
    description: str
    rows: tuple[Row, ...]
    pages: tuple[tuple[str, str], ...]
    kinds: tuple[str, ...] | None = None
    names: str = ""

    @property
    def uid(self) -> str:
        """What its address ends with."""
        return f"{TAG}-{self.name}"

    def to_dict(self, docs: str = DOCS) -> dict[str, Any]:
        """Return it as Grafana reads it.

        Args:
            docs: the URL of this documentation, or of one that has the same pages.
        """
        return {
            "__inputs": [
                {
                    "name": "DS_PROMETHEUS",
                    "label": "Prometheus",
                    "description": "Where the metrics of the services are",
                    "type": "datasource",
                    "pluginId": "prometheus",
                    "pluginName": "Prometheus",
                }
            ],
            "uid": self.uid,
            "title": f"resilient: {self.title}",
            "description": self.description,
            "tags": [TAG],
            "schemaVersion": _SCHEMA,
            "version": 1,
            "editable": True,
            "graphTooltip": 1,  # one cursor for all panels
            "timezone": "browser",
            "time": {"from": "now-1h", "to": "now"},
            "refresh": "30s",
            "templating": {"list": list(self._variables())},
            "annotations": {"list": [_annotation(*transition) for transition in _TRANSITIONS]},
            "links": list(self._links(docs.rstrip("/"))),
            "panels": list(self._panels()),
        }

    def _variables(self) -> Iterator[dict[str, Any]]:
        yield {
            "type": "datasource",
            "name": "datasource",
            "label": "Data source",
            "query": "prometheus",
            "regex": "",
            "refresh": 1,
            "hide": 0,
            "multi": False,
            "includeAll": False,
            "options": [],
            # Chosen when it is imported. Where it is provisioned nobody chooses, and Grafana takes the first.
            "current": {"selected": True, "text": "${DS_PROMETHEUS}", "value": "${DS_PROMETHEUS}"},
        }
        yield _variable("service", "Service", f"label_values({_ANY}}}, job)")
        yield _variable("instance", "Instance", f'label_values({_ANY}, job=~"$service"}}, instance)')
        if self.names:
            yield _variable(
                "policy", "Policy", f"query_result({self.names})", r'/resilient_policy_name="([^"]+)"/'
            )
        else:
            of = _ANY if self.kinds is None else f'{{resilient_policy_kind=~"{"|".join(self.kinds)}"'
            yield _variable("policy", "Policy", f"label_values({of}, {_CHOSEN}}}, resilient_policy_name)")

    def _links(self, docs: str) -> Iterator[dict[str, Any]]:
        yield {
            "type": "dashboards",
            "title": "Dashboards",
            "tags": [TAG],
            "asDropdown": True,
            "includeVars": False,  # policies of one kind are not those of another
            "keepTime": True,
            "targetBlank": False,
            "icon": "external link",
            "tooltip": "",
            "url": "",
        }
        for title, page in self.pages:
            yield {
                "type": "link",
                "title": title,
                "url": f"{docs}/{page}.html",
                "tags": [],
                "asDropdown": False,
                "includeVars": False,
                "keepTime": False,
                "targetBlank": True,
                "icon": "doc",
                "tooltip": "In the documentation",
            }

    def _panels(self) -> Iterator[dict[str, Any]]:
        """Put the panels into the grid."""
        number = y = 0
        for row in self.rows:
            number += 1
            yield {
                "id": number,
                "type": "row",
                "title": row.title,
                "collapsed": False,
                "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1},
                "panels": [],
            }
            y += 1
            x = line = 0
            for panel in row.panels:
                number += 1
                if x + panel.width > WIDTH:
                    x, y, line = 0, y + line, 0
                yield panel.to_dict(number, x, y)
                x += panel.width
                line = max(line, panel.height)
            y += line


def _variable(name: str, label: str, query: str, regex: str = "") -> dict[str, Any]:
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": "StandardVariableQuery"},
        "definition": query,
        "regex": regex,
        "refresh": 2,  # whenever the time range changes
        "sort": 1,
        "hide": 0,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",  # what has no such label, too
        "options": [],
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def _annotation(state: str, word: str, color: str) -> dict[str, Any]:
    return {
        "name": f"Breaker {word}",
        "datasource": DATASOURCE,
        "enable": True,
        "hide": False,
        "iconColor": color,
        "expr": increase(BREAKER_TRANSITIONS, state, kind="circuit_breaker").expr + " > 0",
        "step": "60s",
        "titleFormat": f"{{{{resilient_policy_name}}}} {word}",
        "textFormat": "",
        "tagKeys": "resilient_policy_name",
        "useValueForTime": False,
    }
