"""The map of what services depend on: what is one node, how edges tell, and that no name breaks a picture."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from resilient.health import Report, Result, Status
from resilient.health.mapping.dependency_map import (
    DependencyMap,
    Edge,
    EdgeKind,
    Evidence,
    Node,
    NodeKind,
    map_of,
    merge,
)

NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
HOW_TO = Path(__file__).parents[2] / "docs" / "how-to" / "map-dependencies.md"

HOSTILE = [
    'a"]; click n0 "javascript:alert(1)"',
    "a\nn9 --> n0",
    "a\\",
    '\\"',
    "<img src=x onerror=alert(1)>",
    "`md`",
    '"`md`"',
    "#quot;#35;",
    "direction TB",
    "x direction\tLR y",
    "style a:b#c;",
    "classDef fail:x#fff;",
    "%%{init: {}}%%",
    "end",
    "a --> b",
    "a|b",
    "]) (( [[ {{ }} ~~~",
    "accTitle: x",
    "n0@{shape: rect}",
    "\u202egnitset\u202c",
    "\x1b[31mred",
    "\u2028\u2029\x85",
    "\ud800",
    "ﬂ°°34¶ß",
    "&quot;&#34;",
    "\\N\\G\\l",
    "größe / 中文",
    " ",
    "x" * 5_000,
]


def report_of(*results: Result, status: Status = Status.PASS, service: str = "checkout") -> Report:
    return Report("all", status, service, None, NOW, 1.0, results)


def result(name: str, kind: str = "check", status: Status = Status.PASS, **words: Any) -> Result:
    return Result(name, kind, status, **words)


def node(found: DependencyMap, name: str) -> Node:
    (one,) = [node for node in found.nodes if node.name == name]
    return one


def edge(found: DependencyMap, source: str, target: str) -> Edge:
    (one,) = [edge for edge in found.edges if (edge.source, edge.target) == (source, target)]
    return one


# Of one service.


def test_checks_and_policies_of_one_name_are_one_node() -> None:
    """A breaker, a pool and a check of the payments are three witnesses, and the worst counts."""
    found = map_of(
        report_of(
            result("payments", "circuit_breaker", Status.WARN, output="open for 3 s"),
            result("payments", "connection_pool"),
            result("payments", critical=True),
            result("postgres"),
        )
    )

    assert [node.id for node in found.nodes] == [
        "service:checkout",
        "dependency:payments",
        "dependency:postgres",
    ]
    assert node(found, "payments").status is Status.WARN
    assert edge(found, "service:checkout", "dependency:payments") == Edge(
        "service:checkout",
        "dependency:payments",
        EdgeKind.USES,
        Status.WARN,
        critical=True,
        witnesses=(
            Evidence("circuit_breaker", Status.WARN, "open for 3 s"),
            Evidence("connection_pool", Status.PASS),
            Evidence("check", Status.PASS),
        ),
    )


def test_service_is_a_node_with_its_own_account_of_itself() -> None:
    """A failed dependency that is not critical leaves it passing."""
    found = map_of(replace(report_of(result("ads", status=Status.FAIL)), output="draining"))

    assert found.nodes[0] == Node("service:checkout", "checkout", NodeKind.SERVICE, Status.PASS, "draining")
    assert found.at == NOW


@pytest.mark.parametrize(
    ("results", "kind"),
    [
        ([result("x", external=False)], NodeKind.OWN),
        ([result("x", "maintenance")], NodeKind.OWN),
        ([result("x", "rate_limiter")], NodeKind.OWN),
        ([result("x", "retry_budget"), result("x", "retry")], NodeKind.OWN),
        ([result("x", "rate_limiter"), result("x", "circuit_breaker")], NodeKind.DEPENDENCY),
        ([result("x")], NodeKind.DEPENDENCY),
        ([result("x", "bulkhead")], NodeKind.DEPENDENCY),
    ],
)
def test_what_is_of_the_service_itself_is_no_dependency(results: list[Result], kind: NodeKind) -> None:
    """Its memory and its doors are not outside; a limiter beside a breaker is about the same other side."""
    assert node(map_of(report_of(*results)), "x").kind is kind


def test_checks_that_stand_on_others_have_edges_to_them() -> None:
    """With the state of what they stand on, once, and none to themselves or to what is not there."""
    found = map_of(
        report_of(
            result("network", status=Status.FAIL),
            result("postgres", status=Status.UNKNOWN, depends_on=("network",), critical=True),
            result("postgres", "pool", depends_on=("network", "postgres", "nothing")),
        )
    )

    assert [one for one in found.edges if one.kind is EdgeKind.DEPENDS_ON] == [
        Edge(
            "dependency:postgres",
            "dependency:network",
            EdgeKind.DEPENDS_ON,
            Status.FAIL,
            critical=True,
        )
    ]


# Of a fleet.


def test_dependency_that_is_a_service_becomes_it() -> None:
    """Its node tells what it says of itself; the edge, what those say that use it."""
    checkout = map_of(report_of(result("payments", "circuit_breaker", Status.FAIL, output="open")))
    payments = map_of(report_of(result("bank"), service="payments"))
    found = merge([checkout, payments])

    assert [node.id for node in found.nodes] == [
        "service:checkout",
        "service:payments",
        "dependency:bank",
    ]
    assert node(found, "payments").status is Status.PASS
    assert edge(found, "service:checkout", "service:payments").status is Status.FAIL
    assert edge(found, "service:payments", "dependency:bank").status is Status.PASS


def test_dependency_that_several_share_is_as_bad_as_the_worst_says() -> None:
    """And each edge tells who says so."""
    found = merge(
        [
            map_of(report_of(result("postgres"))),
            map_of(report_of(result("postgres", status=Status.FAIL), service="cart")),
        ]
    )

    assert node(found, "postgres").status is Status.FAIL
    assert edge(found, "service:checkout", "dependency:postgres").status is Status.PASS
    assert edge(found, "service:cart", "dependency:postgres").status is Status.FAIL


def test_what_is_a_services_own_is_not_shared() -> None:
    """Two services have two memories."""
    memory = result("memory", external=False)
    found = merge([map_of(report_of(memory)), map_of(report_of(memory, service="cart"))])

    assert [node.id for node in found.nodes if node.kind is NodeKind.OWN] == [
        "own:checkout/memory",
        "own:cart/memory",
    ]


def test_instances_of_a_service_are_one_with_the_worst_of_all() -> None:
    """What each says once is said once."""
    one = map_of(report_of(result("postgres")))
    later = report_of(result("postgres", status=Status.FAIL, output="away"), status=Status.FAIL)
    other = map_of(replace(later, at=NOW + timedelta(seconds=3), output="not ready"))
    found = merge([one, one, other])

    assert len(found.nodes) == 2
    assert (found.nodes[0].status, found.nodes[0].output) == (Status.FAIL, "not ready")
    (only,) = found.edges
    assert only.witnesses == (
        Evidence("check", Status.PASS),
        Evidence("check", Status.FAIL, "away"),
    )
    assert found.at == NOW + timedelta(seconds=3)


def test_edge_is_critical_if_it_is_to_any_instance() -> None:
    """Two versions may run side by side."""
    parts = [map_of(report_of(result("db", critical=critical))) for critical in (True, False)]

    assert [edge.critical for edge in merge(parts).edges] == [True]
    assert [edge.critical for edge in merge(parts[::-1]).edges] == [True]


def test_service_that_checks_itself_has_no_edge_to_itself() -> None:
    """Its own name is not a dependency of it."""
    found = merge([map_of(report_of(result("checkout"), result("db", depends_on=("checkout",))))])

    assert [(edge.source, edge.target) for edge in found.edges] == [
        ("service:checkout", "dependency:db"),
        ("dependency:db", "service:checkout"),
    ]


def test_a_map_is_merged_with_others() -> None:
    """As in a program that has a report of each service."""
    checkout, payments = map_of(report_of(result("payments"))), map_of(report_of(service="payments"))

    assert checkout.merge(payments) == merge([checkout, payments])
    assert [node.name for node in checkout.merge(payments).nodes] == ["checkout", "payments"]
    assert checkout.merge() == checkout


def test_map_of_nothing_is_a_map() -> None:
    """Nobody has told anything."""
    found = merge([])

    assert found == DependencyMap()
    assert json.loads(found.to_json()) == {"version": 1, "nodes": [], "edges": []}
    assert found.to_mermaid().startswith("flowchart LR\n")


# As JSON.


def schema() -> Any:
    """Return the schema that the documentation has."""
    (block,) = re.findall(r"```json\n(\{\n *\"\$schema\".*?)```", HOW_TO.read_text(), re.DOTALL)
    return json.loads(block)


def test_json_says_everything_by_the_schema_of_the_documentation() -> None:
    """Whoever reads it can rely on that."""
    found = map_of(
        report_of(
            result("network"),
            result("postgres", "connection_pool", Status.WARN, output="9 of 10 lent", critical=True),
            result("memory", external=False, status=Status.UNKNOWN, depends_on=("network",)),
        )
    )
    told = json.loads(found.to_json())

    jsonschema.Draft202012Validator(schema()).validate(told)
    assert told["time"] == "2026-03-01T12:30:00.000Z"
    assert told["nodes"][2] == {
        "id": "dependency:postgres",
        "name": "postgres",
        "kind": "dependency",
        "status": "warn",
    }
    assert told["edges"][1] == {
        "source": "service:checkout",
        "target": "dependency:postgres",
        "kind": "uses",
        "status": "warn",
        "critical": True,
        "witnesses": [{"kind": "connection_pool", "status": "warn", "output": "9 of 10 lent"}],
    }


# As pictures.

_TEXT = r'"(?:<br/>|[^"\#`<\n]|\#\d+;)*"'
_MERMAID = re.compile(
    rf"""flowchart\ LR
    | \ {{4}}n\d+(?:\(\[{_TEXT}\]\)|\[\({_TEXT}\)\]|\[{_TEXT}\]):::(?:pass|warn|fail|unknown)
    | \ {{4}}n\d+\ (?:-->|==>|-\.->)(?:\|{_TEXT}\|)?\ n\d+
    | \ {{4}}linkStyle\ \d+(?:,\d+)*\ stroke:\#[0-9a-f]{{6}}
    | \ {{4}}classDef\ (?:pass|warn|fail|unknown)\ (?:(?:fill|stroke|color):\#[0-9a-f]{{6}},?){{3}}
    """,
    re.VERBOSE,
)
# What Mermaid finds in a line wherever it is: a direction, and what its `encodeEntities` cuts.
_ANYWHERE = re.compile(r"direction\s+(?:TB|BT|RL|LR)|style.*:\S*#.*;|classDef.*:\S*#.*;|%%|[{}~@`]")
_DOT_TEXT = r'"(?:[^"\\\n]|\\["\\n])*"'
_DOT = re.compile(
    rf"""digraph\ dependencies\ \{{ | \}}
    | \ {{4}}(?:rankdir=LR;|(?:node|edge)\ \[.*\];)
    | \ {{4}}n\d+(?:\ ->\ n\d+)?\ \[(?:\w+=(?:{_DOT_TEXT}|\w+)(?:,\ )?)+\];
    """,
    re.VERBOSE,
)


def picture_of(name: str, output: str) -> DependencyMap:
    """Return a map with two strange texts in every place that there is for one."""
    return map_of(
        replace(
            report_of(
                result("network", status=Status.FAIL, output=output),
                result(name, output, Status.WARN, output=output, depends_on=("network",), critical=True),
                result("memory", name, Status.UNKNOWN, output=output, external=False),
                service=name,
            ),
            output=output,
        )
    )


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_name_breaks_no_flowchart(text: str) -> None:
    """Each line stays one statement, whatever is in the names and reasons."""
    drawn = picture_of(text, text).to_mermaid()

    assert drawn.endswith("\n")
    for line in drawn[:-1].split("\n"):
        assert _MERMAID.fullmatch(line), line
        assert "classDef" in line or "linkStyle" in line or not _ANYWHERE.search(line), line
    drawn.encode("utf-8")


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_name_breaks_no_digraph(text: str) -> None:
    """The same for Graphviz."""
    drawn = picture_of(text, text).to_dot()

    assert drawn.endswith("}\n")
    for line in drawn[:-1].split("\n"):
        assert _DOT.fullmatch(line), line
    drawn.encode("utf-8")


@given(st.text(), st.text())
@example("", "")
def test_no_text_breaks_a_picture(name: str, output: str) -> None:
    """Whatever Hypothesis finds."""
    drawn = picture_of(name, output)

    for line in drawn.to_mermaid()[:-1].split("\n"):
        assert _MERMAID.fullmatch(line), line
        assert "classDef" in line or "linkStyle" in line or not _ANYWHERE.search(line), line
    for line in drawn.to_dot()[:-1].split("\n"):
        assert _DOT.fullmatch(line), line


def test_flowchart_shows_state_criticality_and_reason() -> None:
    """All of a small one."""
    found = map_of(
        report_of(
            result("network"),
            result("payments", "circuit_breaker", Status.WARN, output="open for 3 s", critical=True),
            result("memory", external=False, status=Status.FAIL),
            result("postgres", depends_on=("network",)),
        )
    )

    assert found.to_mermaid().split("\n")[:12] == [
        "flowchart LR",
        '    n0(["checkout"]):::pass',
        '    n1[("network<br/>check")]:::pass',
        '    n2[("payments<br/>circuit breaker")]:::warn',
        '    n3["memory<br/>check"]:::fail',
        '    n4[("postgres<br/>check")]:::pass',
        "    n0 --> n1",
        '    n0 ==>|"open for 3 s"| n2',
        "    n0 --> n3",
        "    n0 --> n4",
        "    n4 -.-> n1",
        "    linkStyle 0,3,4 stroke:#2e7d32",
    ]


def test_text_comes_back_from_its_entities() -> None:
    """What was written as entities is read as what it was."""
    drawn = picture_of('50 % of "a" <b>', "").to_mermaid()
    (label,) = re.findall(r'n0\(\["(.*?)"\]\)', drawn)

    assert re.sub(r"#(\d+);", lambda found: chr(int(found[1])), label) == '50 % of "a" <b>'


def test_digraph_shows_state_criticality_and_reason() -> None:
    """What passes has nothing to say, nor what fails without a reason."""
    found = map_of(
        replace(
            report_of(
                result("a", status=Status.FAIL, output="away", critical=True),
                result("b", output="all is well", depends_on=("a",)),
                result("c", status=Status.FAIL),
            ),
            output="draining",
        )
    )
    lines = found.to_dot().split("\n")

    assert lines[4].endswith('tooltip="pass: draining"];')
    assert lines[5].endswith('tooltip="fail"];')
    assert lines[8:13] == [
        '    n0 -> n1 [color="#c62828", penwidth=2, label="away", tooltip="away"];',
        '    n0 -> n2 [color="#2e7d32"];',
        '    n0 -> n3 [color="#c62828"];',
        '    n2 -> n1 [color="#c62828", style=dashed];',
        "}",
    ]


def test_long_reason_is_cut_in_the_picture() -> None:
    """At 80 characters; the rest is in the tooltip and in the JSON."""
    for length, shown in ((80, "x" * 80), (81, "x" * 79 + "…")):
        found = map_of(report_of(result("a", status=Status.FAIL, output="x" * length)))

        assert f'label="{shown}", tooltip="{"x" * length}"' in found.to_dot()


def test_edge_to_a_node_that_is_not_there_is_not_drawn() -> None:
    """A map may be made by hand."""
    found = DependencyMap((), (Edge("a", "b", EdgeKind.USES, Status.PASS),))

    assert "-->" not in found.to_mermaid()
    assert "->" not in found.to_dot()


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")
def test_graphviz_reads_the_digraph() -> None:
    """With every hostile text in it."""
    found = merge([picture_of(text, text) for text in HOSTILE])
    done = subprocess.run(
        ["dot", "-Tplain"], input=found.to_dot(), capture_output=True, text=True, timeout=30, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")
