"""What a service depends on and how that is doing, drawn from its checks and policies; and a fleet of them.

Pure functions of reports: nothing here asks anybody.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from ...engine.finding import Status, worst
from ..report import Report, Result
from . import drawing

__all__ = ["DependencyMap", "Edge", "EdgeKind", "Evidence", "Node", "NodeKind", "map_of", "merge"]

_VERSION: Final = 1  # of the JSON form

# What is about the service itself, unless something that looks elsewhere has the same name.
_OWN_KINDS: Final = frozenset({"maintenance", "rate_limiter", "retry", "retry_budget"})


class NodeKind(StrEnum):
    """What a node stands for."""

    SERVICE = "service"
    """A service that has told how it is doing."""
    DEPENDENCY = "dependency"
    """Something outside that a service uses."""
    OWN = "own"
    """Something of the service itself: its memory, its disk, its doors."""


class EdgeKind(StrEnum):
    """What an edge says."""

    USES = "uses"
    """A service uses this, and its checks and policies tell how it does."""
    DEPENDS_ON = "depends_on"
    """What is checked stands on this: a check named it in `depends_on`."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one check or policy says.

    Attributes:
        kind: "check", "circuit_breaker", "connection_pool" and so on.
        status: how it is doing.
        output: why, in one line; empty where there is nothing to say.
    """

    kind: str
    status: Status
    output: str = ""


@dataclass(frozen=True, slots=True)
class Node:
    """A service, or what one uses.

    Attributes:
        id: unique in its map, and the same in the next one.
        name: what it is called.
        kind: what it is.
        status: how it is doing: a service by its own account, all else by the worst that is said of it.
        output: what a service says of itself beyond that; empty where that is nothing.
    """

    id: str
    name: str
    kind: NodeKind
    status: Status
    output: str = ""


@dataclass(frozen=True, slots=True)
class Edge:
    """Who uses what, or what stands on what.

    Attributes:
        source: the id of the node that uses the other.
        target: the id of that one.
        kind: which of the two it is.
        status: how that goes, as the source sees it.
        critical: whether the source fails with it.
        witnesses: what the checks and policies of the source say of it.
    """

    source: str
    target: str
    kind: EdgeKind
    status: Status
    critical: bool = False
    witnesses: tuple[Evidence, ...] = ()


@dataclass(frozen=True, slots=True)
class DependencyMap:
    """Services, what they use, and how that is doing.

    Attributes:
        nodes: each once, services first.
        edges: each once, in the order in which their sources tell of them.
        at: when the latest part of it was told; None for a map of nothing.
    """

    nodes: tuple[Node, ...] = ()
    edges: tuple[Edge, ...] = ()
    at: datetime | None = None

    def to_json(self) -> str:
        """Return the map as JSON: `version`, `time`, `nodes` and `edges`, with members as the attributes.

        What is empty, False or None is left out.
        """
        members: dict[str, Any] = {"version": _VERSION}
        if self.at is not None:
            at = self.at.astimezone(UTC)
            members["time"] = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        members["nodes"] = [
            _told(id=node.id, name=node.name, kind=node.kind, status=node.status, output=node.output)
            for node in self.nodes
        ]
        members["edges"] = [
            _told(
                source=edge.source,
                target=edge.target,
                kind=edge.kind,
                status=edge.status,
                critical=edge.critical,
                witnesses=[
                    _told(kind=one.kind, status=one.status, output=one.output) for one in edge.witnesses
                ],
            )
            for edge in self.edges
        ]
        return json.dumps(members, indent=2)

    def to_mermaid(self) -> str:
        """Return the map as a flowchart of Mermaid's, coloured by how everything is doing.

        Thick edges are critical, dotted ones say what stands on what. Mermaid draws up to 500 edges, and
        50,000 characters, if not told otherwise.
        """
        return drawing.mermaid(*self._strokes())

    def to_dot(self) -> str:
        """Return the map as a digraph for Graphviz, coloured by how everything is doing.

        Thick edges are critical, dotted ones say what stands on what. Outputs are tooltips.
        """
        return drawing.dot(*self._strokes())

    def merge(self, *others: DependencyMap) -> DependencyMap:
        """Return this map and *others* as one picture, as that of a fleet.

        A dependency that has the name of a service in another map becomes that service; dependencies that
        share a name are one node, and so are instances of one service, with the worst of all.

        Args:
            *others: maps of other services, or of instances of the same.

        Returns:
            The map of all.
        """
        return merge([self, *others])

    def _strokes(self) -> tuple[list[drawing.Shape], list[drawing.Arrow]]:
        said: dict[str, dict[str, None]] = {}  # the kinds that speak of a node, each once
        for edge in self.edges:
            said.setdefault(edge.target, {}).update({_words(one.kind): None for one in edge.witnesses})
        shapes = [
            drawing.Shape(
                node.id, node.name, node.kind, node.status, ", ".join(said.get(node.id, ())), node.output
            )
            for node in self.nodes
        ]
        arrows = [
            drawing.Arrow(
                edge.source,
                edge.target,
                edge.status,
                "; ".join(
                    one.output for one in edge.witnesses if one.status is not Status.PASS and one.output
                ),
                critical=edge.critical,
                dotted=edge.kind is EdgeKind.DEPENDS_ON,
            )
            for edge in self.edges
        ]
        return shapes, arrows


def map_of(report: Report) -> DependencyMap:
    """Return the map of one service.

    Checks and policies of the same name are about the same thing: a breaker, a pool and a check named
    "payments" make one node with three witnesses.

    Args:
        report: on the group "all", or what is to be drawn of it.
    """
    service = Node(
        _id(NodeKind.SERVICE, report.service), report.service, NodeKind.SERVICE, report.status, report.output
    )
    groups: dict[str, list[Result]] = {}
    for result in report.results:
        groups.setdefault(result.name, []).append(result)
    nodes = {name: _node(report.service, name, results) for name, results in groups.items()}
    edges = [
        Edge(
            service.id,
            nodes[name].id,
            EdgeKind.USES,
            nodes[name].status,
            any(result.critical for result in results),
            tuple(Evidence(result.kind, result.status, result.output) for result in results),
        )
        for name, results in groups.items()
    ]
    for name, results in groups.items():
        below = dict.fromkeys(one for result in results for one in result.depends_on)
        edges += [
            Edge(
                nodes[name].id,
                nodes[one].id,
                EdgeKind.DEPENDS_ON,
                nodes[one].status,
                any(result.critical for result in results if one in result.depends_on),
            )
            for one in below
            if one in nodes and one != name
        ]
    return DependencyMap((service, *nodes.values()), tuple(edges), report.at)


def merge(maps: Iterable[DependencyMap]) -> DependencyMap:
    """Return one map of a fleet.

    What has the same name is the same thing. A dependency that is named like a service is that service; the
    node tells what the service says of itself, and the edges to it what those say that use it.

    Args:
        maps: of services; of several of the same service, the worst counts.
    """
    parts = [*maps]
    everything = [node for part in parts for node in part.nodes]
    services = {node.name: node.id for node in everything if node.kind is NodeKind.SERVICE}
    same_as = {
        node.id: services[node.name]
        for node in everything
        if node.kind is NodeKind.DEPENDENCY and node.name in services
    }
    nodes: dict[str, Node] = {}
    for node in sorted(everything, key=lambda node: node.kind is not NodeKind.SERVICE):
        if node.id not in same_as:
            nodes[node.id] = _both(nodes.get(node.id, node), node)
    edges: dict[tuple[str, str, EdgeKind], Edge] = {}
    for edge in (edge for part in parts for edge in part.edges):
        source, target = same_as.get(edge.source, edge.source), same_as.get(edge.target, edge.target)
        if source != target:  # a service that checks itself
            key = (source, target, edge.kind)
            edges[key] = _joined(edges.get(key), replace(edge, source=source, target=target))
    times = [part.at for part in parts if part.at is not None]
    return DependencyMap(tuple(nodes.values()), tuple(edges.values()), max(times, default=None))


def _node(service: str, name: str, results: list[Result]) -> Node:
    own = all(not result.external or result.kind in _OWN_KINDS for result in results)
    kind = NodeKind.OWN if own else NodeKind.DEPENDENCY
    # What is a service's own is not that of another one which has the same.
    place = _id(kind, f"{service}/{name}" if own else name)
    return Node(place, name, kind, worst(*(result.status for result in results)))


def _id(kind: NodeKind, name: str) -> str:
    return f"{kind}:{name}"


def _both(one: Node, other: Node) -> Node:
    if one is other:
        return one
    texts = dict.fromkeys(node.output for node in (one, other) if node.output)
    return replace(one, status=worst(one.status, other.status), output="; ".join(texts))


def _joined(one: Edge | None, other: Edge) -> Edge:
    if one is None:
        return other
    return replace(
        one,
        status=worst(one.status, other.status),
        critical=one.critical or other.critical,
        witnesses=tuple(dict.fromkeys((*one.witnesses, *other.witnesses))),
    )


def _words(kind: str) -> str:
    return kind.replace("_", " ")


def _told(**members: Any) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value}
