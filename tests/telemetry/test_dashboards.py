"""The dashboards: Grafana can read them, and what they ask for is there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.docs.pages import ROOT
from tests.support.prometheus_names import faults, in_prometheus, known, metrics

from resilient.cli import main
from resilient.command import alerts
from resilient.engine.measure import Instrument
from resilient.telemetry.alerts import rules
from resilient.telemetry.dashboards import DASHBOARDS, Board, limits
from resilient.telemetry.dashboards.board import DOCS, WIDTH

BOARDS = pytest.mark.parametrize("board", DASHBOARDS.values(), ids=list(DASHBOARDS))

HIDDEN: dict[str, str] = {}
"""Metrics that no dashboard shows, and why."""

# Under both names that a gauge of unit "1" may have.
EITHER = re.compile(r'\{__name__=~"(\w+)\|(?P<other>\1_ratio)", ')
# What makes a name of a query's variables, in what stands for them here.
CHOSEN = {"$__rate_interval": "1m", "$service": ".*", "$instance": ".*", "$policy": ".*"}


def panels(board: Board) -> list[dict[str, Any]]:
    """Return the panels of *board* that show something."""
    return [panel for panel in board.to_dict()["panels"] if panel["type"] != "row"]


def expressions(board: Board) -> Iterator[tuple[str, str]]:
    """Return all that *board* asks for in PromQL, and for which of its parts."""
    for panel in panels(board):
        for target in panel["targets"]:
            yield f"{board.name}/{panel['title']}", target["expr"]
    for annotation in board.to_dict()["annotations"]["list"]:
        yield f"{board.name}/{annotation['name']}", annotation["expr"]


ASKED = [one for board in DASHBOARDS.values() for one in expressions(board)]


def named(expr: str) -> set[str]:
    """Return the metrics that *expr* names."""
    return {name for name in re.findall(r"[a-z_]{4,}", expr) if name in known()}


def test_there_is_one_for_each_pattern():
    """Nine of them, the overview first, each at an address of its own."""
    assert list(DASHBOARDS) == [
        "overview",
        "circuit-breaker",
        "retry",
        "timeout",
        "rate-limiter",
        "bulkhead",
        "cache",
        "connection-pool",
        "health",
    ]
    assert len({board.uid for board in DASHBOARDS.values()}) == len(DASHBOARDS)
    assert all(re.fullmatch(r"[a-z-]{1,40}", board.uid) for board in DASHBOARDS.values())


@BOARDS
def test_is_in_the_classic_schema(board: Board):
    """It can be imported: a data source is asked for, and everything refers to the variable that has it."""
    made = board.to_dict()
    assert made["schemaVersion"] == 41
    (asked,) = made["__inputs"]
    assert (asked["name"], asked["type"], asked["pluginId"]) == ("DS_PROMETHEUS", "datasource", "prometheus")
    variables = {variable["name"]: variable for variable in made["templating"]["list"]}
    assert list(variables) == ["datasource", "service", "instance", "policy"]
    assert variables["datasource"]["current"]["value"] == "${DS_PROMETHEUS}"
    for name in ("service", "instance", "policy"):
        assert variables[name]["multi"]
        assert variables[name]["includeAll"]
        assert variables[name]["allValue"] == ".*"  # series without the label, too
    everything = [variables[name] for name in ("service", "instance", "policy")]
    everything += made["annotations"]["list"]
    everything += [one for panel in panels(board) for one in (panel, *panel["targets"])]
    assert all(one["datasource"] == {"type": "prometheus", "uid": "${datasource}"} for one in everything)


@BOARDS
def test_panels_fill_the_grid(board: Board):
    """None lies on another, none is cut off, and there are no holes between them."""
    made = board.to_dict()["panels"]
    assert len({panel["id"] for panel in made}) == len(made)
    taken = Counter(
        (x, y)
        for place in (panel["gridPos"] for panel in made)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    )
    bottom = max(y for _, y in taken) + 1
    assert taken == dict.fromkeys(((x, y) for x in range(WIDTH) for y in range(bottom)), 1)


@BOARDS
def test_panels_say_what_they_show(board: Board):
    """Each has a title of its own in its row, a description, a unit and names for its series."""
    for panel in panels(board):
        assert panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["targets"], panel["title"]
        unit = panel["fieldConfig"]["defaults"].get("unit") or panel["options"]["yAxis"]["unit"]
        assert unit in {"s", "ops", "percentunit", "percent", "bytes", "short", "none"}, panel["title"]
        legends = [target["legendFormat"] for target in panel["targets"]]
        assert len(set(legends)) == len(legends), panel["title"]
        for target in panel["targets"]:
            told_apart = re.findall(r"\bby \(([^)]*)\)", target["expr"])
            outermost = set(told_apart[0].split(", ")) - {"le"} if told_apart else set()
            if panel["type"] == "heatmap":
                assert target["legendFormat"] == "{{le}}", panel["title"]
            elif panel["type"] != "stat":
                assert outermost == set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])), panel["title"]
    titles = [panel["title"] for panel in board.to_dict()["panels"]]
    assert titles[0] in {"At a glance", "Rate, errors, duration"}


@BOARDS
def test_asks_for_what_there_is(board: Board):
    """It names metrics, labels and values that there are, and everything goes by the variables."""
    renamed = {name + "_ratio": replace(series, name=name + "_ratio") for name, series in known().items()}
    for where, expr in expressions(board):
        for one in (EITHER.sub(r"\1{", expr), EITHER.sub(r"\g<other>{", expr)):
            assert faults(one, renamed) == [], where
            assert "__name__" not in one, where
        selectors = re.findall(r"\{[^}]*\}", expr)
        assert selectors, where
        for selector in selectors:
            assert 'job=~"$service"' in selector, where
            assert 'instance=~"$instance"' in selector, where
            assert re.search(r'_(policy|pool)_name=~"\$policy"', selector), where
        assert set(re.findall(r"\[([^\]]*)\]", expr)) <= {"$__rate_interval"}, where


def test_asks_under_both_names_of_a_ratio():
    """Python's exporter calls a gauge of unit "1" as it is; OTLP into Prometheus calls it a ratio."""
    both = {in_prometheus(one) for one in metrics() if (one.instrument, one.unit) == (Instrument.GAUGE, "1")}
    asked = {match[1] for _, expr in ASKED for match in EITHER.finditer(expr)}
    assert asked == both
    assert not any(re.search(rf"(?<!\w){name}\{{", expr) for _, expr in ASKED for name in both)


@BOARDS
def test_lets_choose_what_there_is(board: Board):
    """The lists of services, instances and names are those of series of ours."""
    lists = {variable["name"]: variable["query"] for variable in board.to_dict()["templating"]["list"]}
    service, instance, policy = (lists[name]["query"] for name in ("service", "instance", "policy"))
    assert service == 'label_values({__name__=~"resilient_.+"}, job)'
    assert instance == 'label_values({__name__=~"resilient_.+", job=~"$service"}, instance)'
    if board.names:
        assert faults(policy.removeprefix("query_result")) == []
        labels = {label for series in known().values() for label in series.labels}
        assert set(re.findall(r'"([a-z_]+)"', policy)) <= labels  # what is copied into the other
    else:
        assert policy.startswith("label_values({")
        assert policy.endswith(", resilient_policy_name)")
        kinds = {
            kind
            for series in known().values()
            for labels in series.seen
            if (kind := labels.get("resilient_policy_kind"))
        }
        assert set(board.kinds or ()) <= kinds


def test_every_metric_is_shown():
    """In one dashboard at least, or it is said why not."""
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for _, expr in ASKED for name in named(expr)}
    there = {re.sub(r"_(bucket|sum|count)$", "", name) for name in known()}
    either = {match[1] for _, expr in ASKED for match in EITHER.finditer(expr)}
    assert there - shown - either == set(HIDDEN)


def test_has_the_panels_that_are_promised():
    """States over time of breakers, limiters and checks, and first how calls do."""
    timelines = {
        (board.name, name)
        for board in DASHBOARDS.values()
        for panel in panels(board)
        if panel["type"] == "state-timeline"
        for name in named(panel["targets"][0]["expr"])
    }
    assert timelines >= {
        ("circuit-breaker", "resilient_circuit_breaker_status"),
        ("circuit-breaker", "resilient_circuit_breaker_override"),
        ("rate-limiter", "resilient_rate_limiter_status"),
        ("health", "resilient_health_status"),
        ("overview", "resilient_circuit_breaker_status"),
    }
    assert [panel["title"] for panel in panels(DASHBOARDS["overview"])][:3] == ["Rate", "Errors", "Duration"]


@BOARDS
def test_marks_transitions(board: Board):
    """Where a breaker opened, probed and closed, there is a mark on all graphs."""
    marks = {mark["iconColor"]: mark for mark in board.to_dict()["annotations"]["list"]}
    assert list(marks) == ["red", "yellow", "green"]
    for mark in marks.values():
        assert named(mark["expr"]) == {"resilient_circuit_breaker_transitions_total"}
    assert 'state="open"' in marks["red"]["expr"]
    assert marks["red"]["titleFormat"] == "{{resilient_policy_name}} opened"


@BOARDS
def test_links_lead_somewhere(board: Board):
    """To pages that there are, and to the other dashboards."""
    assert alerts._RUNBOOKS == DOCS
    others, *pages = board.to_dict("https://docs.example/")["links"]
    assert (others["type"], others["tags"]) == ("dashboards", board.to_dict()["tags"])
    assert pages
    for page in pages:
        file = page["url"].removeprefix("https://docs.example/").removesuffix(".html")
        assert (ROOT / "docs" / f"{file}.md").exists(), page["url"]
    for panel in panels(board):
        for link in panel["links"]:
            uid = link["url"].removeprefix("/d/").partition("?")[0]
            assert uid in {one.uid for one in DASHBOARDS.values()}


@pytest.mark.parametrize(
    ("alert", "limit"),
    [
        ("ResilientErrorsHigh", limits.ERRORS),
        ("ResilientResponseTimeP95High", limits.RESPONSE),
        ("ResilientCPUHigh", limits.UTILIZATION),
        ("ResilientMemoryHigh", limits.UTILIZATION),
        ("ResilientRetriesHigh", limits.RETRIES),
        ("ResilientThrottleRefuses", limits.THROTTLED),
        ("ResilientLimiterStoreErrors", limits.STORE_ERRORS),
        ("ResilientBulkheadFull", limits.BULKHEAD_USE),
        ("ResilientPoolNearlyFull", limits.POOL_USE),
        ("ResilientReplicaLags", limits.LAG),
        ("ResilientStaleAnswers", limits.STALE),
        ("ResilientStaleAnswersOld", limits.STALE_AGE),
    ],
)
def test_lines_are_those_of_the_alerts(alert: str, limit: float):
    """What is red in a panel is what an alert is about."""
    _, _, after = rules(Decimal("99.9"), DOCS).partition(f"- alert: {alert}\n")
    expr, _, _ = after.partition("labels:")
    assert f"> {limit:g}\n" in expr


def promtool(command: str, file: Path, content: dict[str, Any]) -> str:
    """Have promtool look at *content* and return what it says; skip the test where there is none."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed")
    file.write_text(json.dumps(content))  # which is YAML, too
    done = subprocess.run([program, command, "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def filled_in(expr: str) -> str:
    """Return *expr* with something chosen for each variable."""
    for variable, value in CHOSEN.items():
        expr = expr.replace(variable, value)
    return expr


def test_prometheus_can_read_what_they_ask(tmp_path: Path):
    """Every expression parses."""
    recorded = [
        {"record": f"asked:{number}", "expr": filled_in(expr)} for number, (_, expr) in enumerate(ASKED)
    ]
    told = promtool("check", tmp_path / "asked.yaml", {"groups": [{"name": "asked", "rules": recorded}]})
    assert f"{len(ASKED)} rules found" in told


def series(name: str, /, instance: str = "a", **labels: str) -> str:
    """Return a series in Prometheus's notation; *labels* without what ours begin with."""
    own = "db_client_connection_" if name.startswith("db_") else "resilient_"
    pairs = {"job": "shop", "instance": instance, **{own + label: value for label, value in labels.items()}}
    return name + "{" + ",".join(f'{label}="{value}"' for label, value in pairs.items()) + "}"


PAYMENTS = {"policy_kind": "circuit_breaker", "policy_name": "payments"}
ONE_OF_TWO_IS_OPEN: dict[str, float] = {
    series("resilient_circuit_breaker_status", instance, **PAYMENTS, circuit_breaker_state=state): value
    for instance, now in (("a", "closed"), ("b", "open"))
    for state, value in ({"closed": 0, "half_open": 0, "open": 0} | {now: 1}).items()
}
SHOWN: dict[str, tuple[tuple[str, str], dict[str, float], dict[str, float]]] = {
    "the worst state of several instances": (
        ("circuit-breaker", "Breakers"),
        ONE_OF_TWO_IS_OPEN,
        {'{job="shop",resilient_policy_name="payments"}': 2},
    ),
    "how many there are": (("overview", "Open"), ONE_OF_TWO_IS_OPEN, {"{}": 1}),
    "no share of no calls": (
        ("retry", "Retries per first attempt"),
        {
            series(
                "resilient_retry_attempts_total", policy_kind="retry", policy_name="pay", attempt_type=which
            ): 7
            for which in ("original", "retry")
        },
        {},
    ),
    "that none is spent": (
        ("overview", "Budgets spent"),
        {series("resilient_retry_budget_balance", policy_name="pay"): 5},
        {"{}": 0},
    ),
    "a share of what all instances have": (
        ("connection-pool", "Connections lent"),
        {
            series("db_client_connection_count", "a", pool_name="orders", state="used"): 9,
            series("db_client_connection_count", "b", pool_name="orders", state="used"): 7,
            series("db_client_connection_count", "b", pool_name="orders", state="idle"): 3,
            series("db_client_connection_max", "a", pool_name="orders"): 10,
            series("db_client_connection_max", "b", pool_name="orders"): 10,
        },
        {"{}": 0.8},
    ),
    "a ratio by its other name": (
        ("cache", "Hit ratio since the start"),
        {series("resilient_cache_hit_ratio_ratio", policy_name="rates"): 0.5},
        {'{job="shop",resilient_policy_name="rates"}': 0.5},
    ),
}
"""Which panel shows what of which series, by its labels."""


def test_panels_show_what_they_say(tmp_path: Path):
    """Of several instances the worst or the sum, and nothing where there is nothing."""
    tests = []
    for (name, title), given, expected in SHOWN.values():
        panel = next(panel for panel in panels(DASHBOARDS[name]) if panel["title"] == title)
        asked = {
            "expr": filled_in(panel["targets"][0]["expr"]),
            "eval_time": "1m",
            "exp_samples": [{"labels": labels, "value": value} for labels, value in expected.items()],
        }
        inputs = [{"series": one, "values": f"{value}+0x2"} for one, value in given.items()]
        tests.append({"interval": "30s", "input_series": inputs, "promql_expr_test": [asked]})
    assert "SUCCESS" in promtool("test", tmp_path / "shown.yaml", {"tests": tests})


def test_command_lists_them(capsys: pytest.CaptureFixture[str]):
    """With what each is for."""
    assert main(["dashboards"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in told] == list(DASHBOARDS)
    assert told[0].endswith(DASHBOARDS["overview"].description)


def test_command_prints_one(capsys: pytest.CaptureFixture[str]):
    """As JSON, with links to the documentation that is given."""
    assert main(["dashboards", "retry", "--runbooks", "https://wiki.example/r"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made == DASHBOARDS["retry"].to_dict("https://wiki.example/r")
    assert "https://wiki.example/r/policies/retry.html" in [link["url"] for link in made["links"]]


def test_command_writes_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A file for each, in a directory that it makes."""
    out = tmp_path / "etc" / "dashboards"
    assert main(["dashboards", "--out", str(out)]) == 0
    files = [Path(row) for row in capsys.readouterr().out.splitlines()]
    assert sorted(files) == sorted(out.iterdir())
    assert {file.stem for file in files} == {json.loads(file.read_text())["uid"] for file in files}
    assert len(files) == len(DASHBOARDS)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["cashe"], "there is no dashboard 'cashe'; there are overview, circuit-breaker,"),
        (["cache", "--runbooks", "wiki"], "the URL must begin with http:// or https://"),
    ],
)
def test_command_refuses(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]):
    """What it does not know, with what there is."""
    with pytest.raises(SystemExit) as exited:
        main(["dashboards", *arguments])
    assert exited.value.code == 2
    assert complaint in capsys.readouterr().err
