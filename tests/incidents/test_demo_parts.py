"""The demo's own machinery: load, figures, verdict, report, and processes that end with their parent."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import httpx
import pytest
from examples.shop import figures, load, report, verdict
from examples.shop.figures import Run, Sample, Span, Summary, Transition
from examples.shop.incident import Settings
from examples.shop.processes import ROOT, ServiceDiedError, running_shop

SETTINGS = Settings(rate=10, warm_up=1, calm=2, fault=3, recovery=1)


def _run(version: str, slow: float) -> Run:
    """Return a run of seven seconds whose requests take 0.1 s, and *slow* in the fault."""
    run = Run(version, SETTINGS.spans())
    fault = run.span("fault")
    for number in range(70):
        at = number / 10
        latency = slow if at in fault else 0.1
        action = "checkout" if number % 5 == 0 else "browse"
        run.samples.append(Sample(at, action, latency, 0.001, "200" if latency < 3 else "timeout"))
    run.api_calls = [(second * 1.0, second * (10 if version == "bare" else 0)) for second in range(8)]
    return run


def _summaries(run: Run) -> dict[str, Summary]:
    return {span.name: figures.summarise(run, span, good_within=0.8) for span in run.spans}


def test_plan_keeps_its_pace_and_deals_the_exact_mix() -> None:
    requests = list(load.plan(rate=19, seconds=20))

    hands = [Counter(due.action for due in requests[start : start + 19]) for start in range(19, 380, 19)]
    assert [due.at for due in requests] == [number / 19 for number in range(380)]
    assert all(hand == load.MIX for hand in hands)


def test_plan_checks_out_only_filled_carts() -> None:
    filled: set[str] = set()
    for due in load.plan(rate=50, seconds=60):
        user = httpx.URL(due.path).params["user"]
        if due.action == "add to cart":
            filled.add(user)
        elif due.action == "checkout":
            filled.remove(user)


def test_plan_is_the_same_for_both_runs() -> None:
    assert list(load.plan(40, 10)) == list(load.plan(40, 10))


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1), (0.5, 50), (0.99, 99), (1.0, 100)])
def test_percentile_is_a_value_that_occurred(share: float, expected: int) -> None:
    assert figures.percentile(range(100, 0, -1), share) == expected


def test_summary_counts_by_when_a_request_was_due() -> None:
    summary = _summaries(_run("bare", slow=3.5))["fault"]

    assert (summary.requests, summary.errors, summary.goodput, summary.api_calls) == (30, 30, 0.0, 30)
    assert (summary.p50, summary.checkout_p99, summary.error_ratio) == (3.5, 3.5, 1.0)


def test_late_answer_is_no_error_and_no_good_answer() -> None:
    summary = _summaries(_run("bare", slow=0.9))["fault"]

    assert (summary.errors, summary.goodput) == (0, 0.0)


def test_verdict_holds_where_the_incident_happens_and_is_prevented() -> None:
    checks = verdict.checks(_summaries(_run("bare", slow=2.5)), _summaries(_run("protected", slow=0.1)))

    assert all(check.held for check in checks)


@pytest.mark.parametrize(
    ("number", "bare_slow", "protected_slow", "changed"),
    [
        pytest.param(0, 0.4, 0.1, {}, id="no incident without policies"),
        pytest.param(1, 2.5, 0.1, {"errors": 1}, id="errors with policies"),
        pytest.param(2, 2.5, 0.2, {}, id="slow with policies"),
        pytest.param(3, 2.5, 0.1, {"api_calls": 8}, id="as many calls to the API"),
    ],
)
def test_each_promise_can_be_broken(
    number: int, bare_slow: float, protected_slow: float, changed: dict[str, int]
) -> None:
    bare, protected = _summaries(_run("bare", bare_slow)), _summaries(_run("protected", protected_slow))
    protected["fault"] = replace(protected["fault"], **changed)

    held = [check.held for check in verdict.checks(bare, protected)]
    assert held == [index != number for index in range(4)]


def test_report_needs_nothing_but_itself(tmp_path: Path) -> None:
    page = _written(tmp_path).read_text(encoding="utf-8")

    assert not re.findall(r"""(?:src|href)\s*=|url\(|@import|https?:""", page)
    assert "Incident prevented" in page
    assert "rates_breaker" in page, "the source of protected.py"


def test_report_draws_well_formed_plots_that_hold_both_runs(tmp_path: Path) -> None:
    page = _written(tmp_path).read_text(encoding="utf-8")
    plots = [ET.fromstring(plot) for plot in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]

    lines = [{group.get("class") for group in plot.iter("g")} for plot in plots]
    assert lines == [{"line bare", "line protected"}] * 3 + [set()]
    states = [rect.get("class") for rect in plots[3].iter("rect") if "state" in str(rect.get("class"))]
    assert states == ["state closed", "state open", "state half-open"]


def test_raw_figures_are_json_that_any_reader_understands(tmp_path: Path) -> None:
    _written(tmp_path)
    raw = json.loads((tmp_path / "figures.json").read_text(), parse_constant=pytest.fail)

    assert [len(run["samples"]) for run in raw["runs"]] == [70, 70]
    assert [check["held"] for check in raw["checks"]] == [True] * 4


def _written(out: Path) -> Path:
    runs = [_run("bare", 2.5), _run("protected", 0.1)]
    runs[1].transitions = [
        Transition(3.5, "currency: rates-api", "open"),
        Transition(5.0, "currency: rates-api", "half-open"),
    ]
    # Too short for a single checkout: its percentile is not a number.
    runs[0].spans.append(Span("", 7.0, 7.05))
    summaries = {run.version: _summaries(run) for run in runs}
    runs[0].spans.pop()
    return report.write(out, SETTINGS, runs, summaries, verdict.checks(*summaries.values()))


@pytest.mark.slow
@pytest.mark.faults
async def test_shop_is_up_while_open_and_gone_afterwards(tmp_path: Path) -> None:
    async with httpx.AsyncClient() as http:
        async with running_shop("bare", tmp_path) as shop:
            await shop.wait_until_up(http)
            page = await http.get(shop.urls["frontend"] + "/?currency=EUR")

        assert page.status_code == 200
        for url in shop.urls.values():
            with pytest.raises(httpx.ConnectError):
                await http.get(url)


@pytest.mark.slow
@pytest.mark.faults
async def test_service_that_dies_is_told_by_name(tmp_path: Path) -> None:
    async with httpx.AsyncClient() as http, running_shop("bare", tmp_path) as shop:
        await shop.wait_until_up(http)
        shop._processes["currency"].kill()
        await shop._processes["currency"].wait()

        with pytest.raises(ServiceDiedError, match="currency ended with code -9"):
            await shop.check()


_PARENT = """
import asyncio, json, pathlib, signal, sys
import httpx
from examples.shop.processes import running_shop

async def main():
    async with httpx.AsyncClient() as http, running_shop("bare", pathlib.Path(sys.argv[1])) as shop:
        await shop.wait_until_up(http)
        print(json.dumps(shop.urls), flush=True)
        await asyncio.sleep(60)

# A job in the background may have been told to ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_services_end_with_their_parent(tmp_path: Path, by: signal.Signals) -> None:
    command = [sys.executable, "-c", _PARENT, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        assert parent.stdout is not None
        urls = json.loads(parent.stdout.readline())
        parent.send_signal(by)
        parent.wait()

    with httpx.Client(transport=httpx.HTTPTransport(retries=0)) as http:
        for url in urls.values():
            _wait_until_refused(http, url)


def _wait_until_refused(http: httpx.Client, url: str) -> None:
    give_up_at = time.monotonic() + 5
    while time.monotonic() < give_up_at:
        try:
            http.get(url, timeout=0.1)
        except httpx.ConnectError:
            return
        except httpx.TransportError:
            continue
        time.sleep(0.02)
    pytest.fail(f"{url} still answers")
