"""The alert rules: each fires when it should and not before, names what there is, and leads to a page."""

from __future__ import annotations

import re
import shutil
import subprocess
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.prometheus_names import Series, faults, known

from resilient.cli import main
from resilient.telemetry.alerts import alerts, rules

ROOT = Path(__file__).parents[2]
CASES = Path(__file__).parent / "alerts"
RUNBOOKS = "https://docs.example"

# OpenTelemetry's, from whatever serves the requests. `host` is made of `instance` by the rules.
_REQUEST = frozenset({"http_request_method", "http_response_status_code", "http_route", "url_scheme"})
REQUESTS = {
    f"http_server_request_duration_seconds_{part}": Series(
        f"http_server_request_duration_seconds_{part}",
        _REQUEST | {"le"} if part == "bucket" else _REQUEST,
        (dict.fromkeys((*_REQUEST, "le")),),
    )
    for part in ("bucket", "sum", "count")
}

promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)"
)


def groups() -> list[dict[str, Any]]:
    """Return the groups of rules, as Prometheus reads them."""
    told: dict[str, Any] = yaml.safe_load(rules(Decimal("99.9"), RUNBOOKS))
    assert set(told) == {"groups"}
    found: list[dict[str, Any]] = told["groups"]
    return found


RULES: list[dict[str, Any]] = [rule for group in groups() for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
_OPERATIONS = frozenset({"resilient_policy_kind", "resilient_policy_name"})
_SHARED = frozenset({"host", "resilient_health_check_name"})
RECORDED = {
    rule["record"]: Series(rule["record"], labels, (dict.fromkeys(labels),))
    for rule in RULES
    if "record" in rule
    for labels in (_OPERATIONS if "slo" in rule["record"] else _SHARED,)
}
# What OpenTelemetry's resource has; a label for each of its attributes.
_RESOURCE = frozenset({"host_name", "k8s_pod_name"})
RESOURCE = {"target_info": Series("target_info", _RESOURCE, (dict.fromkeys(_RESOURCE),))}


def run(*arguments: str, folder: Path) -> None:
    """Run promtool in *folder*; what it complains of is what the test says."""
    done = subprocess.run(
        ["promtool", *arguments], cwd=folder, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@promtool
def test_alerts_fire_when_they_should_and_not_before(tmp_path: Path) -> None:
    """Each with its labels and what it says; in tests/telemetry/alerts, a file for each group."""
    for group in groups():  # apart, as it takes promtool much longer to follow all of them in each case
        (tmp_path / f"{group['name']}.yaml").write_text(yaml.safe_dump({"groups": [group]}, sort_keys=False))
    cases = sorted(CASES.glob("*.test.yaml"))
    for case in cases:
        shutil.copy(case, tmp_path)

    run("test", "rules", *(case.name for case in cases), folder=tmp_path)


@promtool
@pytest.mark.parametrize(
    "arguments", [(), ("--objective", "95", "--runbooks", "https://wiki.example/x/")], ids=str
)
def test_printed_file_is_one_for_prometheus(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    """promtool reads it as Prometheus does."""
    assert main(["alerts", *arguments]) == 0
    (tmp_path / "resilient.yaml").write_text(capsys.readouterr().out)

    run("check", "rules", "resilient.yaml", folder=tmp_path)


def test_each_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    """And each case is about an alert that there is."""
    fires: set[str] = set()
    rests: set[str] = set()
    for case in CASES.glob("*.test.yaml"):
        for test in yaml.safe_load(case.read_text())["tests"]:
            for one in test["alert_rule_test"]:
                (fires if one["exp_alerts"] else rests).add(one["alertname"])

    assert fires == set(ALERTS)
    assert rests == set(ALERTS)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_queries_ask_for_what_there_is(rule: dict[str, Any]) -> None:
    """Metrics, labels and their values, as policies, pools and checks tell them."""
    assert faults(rule["expr"], REQUESTS | RESOURCE | RECORDED) == []


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ("rate(resilient_call_total[5m])", "there is no resilient_call_total"),
        ("resilient_calls_total[5m]", None),
        ('resilient_calls_total{resilient_outcome="failed"}', "never has resilient_outcome 'failed'"),
        ('resilient_calls_total{resilient_outcome=~"failure|lost"}', "never has resilient_outcome 'lost'"),
        ('resilient_calls_total{resilient_outcome!="fail"}', "never has resilient_outcome 'fail'"),
        ('resilient_calls_total{resilient_policy_kind="bulkhead",resilient_outcome="failure"}', "has all of"),
        ('resilient_calls_total{resilient_policy_name=~"$policy"}', None),
        ('db_client_connection_max{resilient_policy_name="db"}', "has no label resilient_policy_name"),
        ("sum by (job, policy) (resilient_calls_total)", "nothing has the label policy"),
        ("a / on (job) group_left max(resilient_bulkhead_limit)", "there is no a"),
        ('label_replace(resilient_bulkhead_limit, "host", "$1", "instance", "(.*)")', None),
        ("histogram_quantile(0.9, sum by (le) (rate(resilient_wait_duration_seconds_bucket[5m])))", None),
        ("sum by (le) (resilient_wait_duration_seconds_count)", "nothing has the label le"),
    ],
)
def test_names_that_there_are_not_are_found(query: str, complaint: str | None) -> None:
    """Or the test above would say nothing."""
    told = faults(query)

    assert (told == []) if complaint is None else any(complaint in one for one in told)


def test_all_metrics_have_names_in_prometheus() -> None:
    """And each is told by somebody, so that the values of its labels are known."""
    assert {
        "resilient_circuit_breaker_status",
        "resilient_call_duration_seconds_bucket",
        "resilient_replica_lag_seconds",
        "resilient_pool_leaked",
        "db_client_connection_timeouts_total",
        "db_client_connection_use_time_seconds_sum",
    } <= set(known())
    assert [one.name for one in known().values() if not one.seen] == []


def test_what_is_said_leads_to_a_page() -> None:
    """It has a severity, a summary, a figure or a reason, and a page that there is."""
    for name, rule in ALERTS.items():
        said = rule["annotations"]
        assert set(said) == {"summary", "description", "runbook_url"}, name
        assert "$labels.job" in said["summary"], name
        assert rule["labels"] == {"severity": "page" if re.search(r"In[25]Days$", name) else "ticket"}, name
        page = said["runbook_url"].removeprefix(f"{RUNBOOKS}/").removesuffix(".html")
        assert (ROOT / "docs" / f"{page}.md").is_file(), said["runbook_url"]
        assert f"{page}.md\n" in (ROOT / "mkdocs.yml").read_text(), page


def test_burn_rates_have_two_windows_each() -> None:
    """As the Site Reliability Workbook has them, for 30 days."""
    burns = {
        name: re.findall(r"ratio_rate(\w+) > (?:([\d.]+) \* )?0.001\b", rule["expr"])
        for name, rule in ALERTS.items()
        if "ErrorBudget" in name
    }

    assert burns == {
        "ResilientErrorBudgetGoneIn2Days": [("1h", "14.4"), ("5m", "14.4")],
        "ResilientErrorBudgetGoneIn5Days": [("6h", "6"), ("30m", "6")],
        "ResilientErrorBudgetGoneIn10Days": [("1d", "3"), ("2h", "3")],
        "ResilientErrorBudgetGoneIn30Days": [("3d", ""), ("6h", "")],
    }


def test_objective_and_runbooks_are_put_in(capsys: pytest.CaptureFixture[str]) -> None:
    """Into the queries and into what is said; nothing is left to be put in."""
    assert main(["alerts", "--objective", "99.50", "--runbooks", "https://wiki.example/x/"]) == 0

    told = capsys.readouterr().out
    assert "> 14.4 * 0.005\n" in told
    assert "the objective of 99.5 % allows" in told
    assert 'runbook_url: "https://wiki.example/x/incidents/b4-alerts.html"' in told
    assert "@" not in told
    assert "0.001" not in told


def test_list_tells_each_alert_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """What is listed is what the rules have."""
    assert main(["alerts", "--list", "--runbooks", RUNBOOKS]) == 0

    assert [tuple(one.split()) for one in capsys.readouterr().out.splitlines()] == [
        (rule["labels"]["severity"], name, rule["annotations"]["runbook_url"])
        for name, rule in ALERTS.items()
    ]
    assert len(alerts()) == len(ALERTS)


def test_reference_has_each_alert() -> None:
    """In the same order, with its severity, how long it waits, and its page."""
    text = (ROOT / "docs" / "reference" / "alerts.md").read_text()
    rows = re.findall(
        r"^\| `(\w+)` \| (\w+) \| .+? \| (\S[^|]*?) \| \[.+?\]\(\.\./(\S+)\.md\) \|$", text, re.MULTILINE
    )

    assert rows == [
        (
            name,
            rule["labels"]["severity"],
            rule.get("for", "at once").replace("m", " min").replace("4h", "4 h"),
            rule["annotations"]["runbook_url"].removeprefix(f"{RUNBOOKS}/").removesuffix(".html"),
        )
        for name, rule in ALERTS.items()
    ]
