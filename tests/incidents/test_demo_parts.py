"""The demo's own machinery: visitors, figures, verdicts, report, and processes that end with their parent."""

from __future__ import annotations

import asyncio
import json
import os
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
from examples.children import ROOT
from examples.shop import figures
from examples.shop.browser import BrokenError, Browser
from examples.shop.crowds import CUSTOMERS, FLOOD, HEEDFUL, MIX, Crowd, plan
from examples.shop.figures import Call, Run, Sample, Span, Transition
from examples.shop.incident import BARE, Outcome, Settings
from examples.shop.incidents.flood import Flood
from examples.shop.incidents.slow_api import SlowApi
from examples.shop.processes import ServiceDiedError, running_shop
from examples.shop.report.page import Played, write
from examples.shop.scenario import Recorder

SETTINGS = Settings(rate=10, warm_up=1, calm=2, fault=3, recovery=1)
SLOW_API, FLOODED = SlowApi(), Flood()


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


def _outcome(run: Run) -> Outcome:
    return Outcome(run, {span.name: figures.summarise(run, span, good_within=0.8) for span in run.spans})


def test_plan_keeps_its_pace_and_deals_the_exact_mix() -> None:
    requests = list(plan(Crowd(CUSTOMERS, 19, 0, 20)))

    hands = [Counter(due.action for due in requests[start : start + 19]) for start in range(19, 380, 19)]
    assert [due.at for due in requests] == [number / 19 for number in range(380)]
    assert all(hand == MIX for hand in hands)


def test_plan_checks_out_only_filled_carts() -> None:
    filled: set[str] = set()
    for due in plan(Crowd(CUSTOMERS, 50, 0, 60)):
        user = httpx.URL(due.path).params["user"]
        if due.action == "add to cart":
            filled.add(user)
        elif due.action == "checkout":
            filled.remove(user)


def test_plan_is_the_same_for_both_runs() -> None:
    crowd = Crowd(CUSTOMERS, 40, 0, 10)

    assert list(plan(crowd)) == list(plan(crowd))


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1), (0.5, 50), (0.99, 99), (1.0, 100)])
def test_percentile_is_a_value_that_occurred(share: float, expected: int) -> None:
    assert figures.percentile(range(100, 0, -1), share) == expected


def test_summary_counts_by_when_a_request_was_due() -> None:
    summary = _outcome(_run("bare", slow=3.5)).fault

    assert (summary.requests, summary.errors, summary.goodput, summary.api_calls) == (30, 30, 0.0, 30)
    assert (summary.p50, summary.checkout_p99, summary.error_ratio) == (3.5, 3.5, 1.0)


def test_late_answer_is_no_error_and_no_good_answer() -> None:
    summary = _outcome(_run("bare", slow=0.9)).fault

    assert (summary.errors, summary.goodput) == (0, 0.0)


def test_verdict_holds_where_the_incident_happens_and_is_prevented() -> None:
    checks = SLOW_API.checks(
        SETTINGS, _outcome(_run("bare", slow=2.5)), _outcome(_run("protected", slow=0.1))
    )

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
    bare, protected = _outcome(_run("bare", bare_slow)), _outcome(_run("protected", protected_slow))
    phases = {**protected.phases, "fault": replace(protected.fault, **changed)}

    held = [check.held for check in SLOW_API.checks(SETTINGS, bare, replace(protected, phases=phases))]
    assert held == [index != number for index in range(4)]


FLOOD_SETTINGS = Settings(rate=20, warm_up=1, calm=4, onset=1, fault=4, recovery=1)
"""Of which follow: 200 requests/s in the flood, 10/s and a burst of 20 for each client."""


def _flood(version: str, *, page: float = 0.05, waits: float = 0.05, served: int = 69) -> Run:
    """Return a run in whose flood pages take *page* and services *waits*, and that serves *served* of it."""
    run = Run(version, FLOOD_SETTINGS.spans())
    faulty = [span for span in run.spans if span.faulty]
    for number in range(220):
        at, action = number / 20, "checkout" if number % 19 == 0 else "browse"
        latency = page if any(at in span for span in faulty) else 0.05
        run.samples.append(Sample(at, action, latency, 0.0, "200"))
    for number in range(900):
        at = 5 + number / 180
        refused = version == "protected" and number >= served
        answer = ("429", FLOOD, 1.0) if refused else ("200", FLOOD, None)
        run.samples.append(Sample(at, "browse", 0.001 if refused else page, 0.0, *answer))
    for at in (1.0, 2.0, 6.5, 7.0):
        wait = 0.05 if at < 5 else waits
        run.calls += [Call(at, service, wait) for service in ("catalogue", "currency", "checkout")]
    if version == "protected":
        run.samples.append(Sample(5.5, "ask", 0.001, 0.0, "429", HEEDFUL, 1.0))
        run.samples.append(Sample(6.5, "come back", 0.001, 0.0, "200", HEEDFUL))
    return run


def _flood_verdict(bare: Run, protected: Run) -> list[bool]:
    return [check.held for check in FLOODED.checks(FLOOD_SETTINGS, _outcome(bare), _outcome(protected))]


def test_flood_verdict_holds_where_the_flood_is_kept_out() -> None:
    """Every promise holds for a shop that goes down bare and does not notice behind its door."""
    assert _flood_verdict(_flood("bare", page=3.0, waits=0.5), _flood("protected")) == [True] * 5


@pytest.mark.parametrize("service_waits", [0.05, 0.24])
def test_flood_is_no_incident_where_one_service_stays_fast(service_waits: float) -> None:
    """Slow pages alone are not every service."""
    bare = _flood("bare", page=3.0, waits=service_waits)

    assert _flood_verdict(bare, _flood("protected")) == [False, True, True, True, True]


def test_flood_verdict_wants_what_is_let_in_to_stay_fast() -> None:
    """Twice the calm is too slow."""
    verdict = _flood_verdict(_flood("bare", page=3.0, waits=0.5), _flood("protected", page=0.1))

    assert verdict == [True, False, True, True, True]


def test_flood_verdict_wants_the_customers_served() -> None:
    """A door that turns customers away is none."""
    protected = _flood("protected")
    protected.samples[150] = replace(protected.samples[150], outcome="429", retry_after=1.0)

    assert _flood_verdict(_flood("bare", page=3.0, waits=0.5), protected) == [True, True, False, True, True]


@pytest.mark.parametrize("served", [60, 75])
def test_flood_verdict_wants_the_flood_to_get_its_limit_exactly(served: int) -> None:
    """Burst and rate, 70 in five seconds: not more, and not much less."""
    protected = _flood("protected", served=served)

    assert _flood_verdict(_flood("bare", page=3.0, waits=0.5), protected) == [True, True, True, False, True]


@pytest.mark.parametrize("outcome", ["429", "timeout"])
def test_flood_verdict_wants_who_waited_to_be_let_in(outcome: str) -> None:
    """Otherwise `Retry-After` was a lie."""
    protected = _flood("protected")
    protected.samples[-1] = replace(protected.samples[-1], outcome=outcome, retry_after=1.0)

    assert _flood_verdict(_flood("bare", page=3.0, waits=0.5), protected) == [True, True, True, True, False]


def test_flood_verdict_wants_every_refusal_to_say_until_when() -> None:
    """One without `Retry-After` is enough."""
    protected = _flood("protected")
    protected.samples[-3] = replace(protected.samples[-3], retry_after=None)

    assert _flood_verdict(_flood("bare", page=3.0, waits=0.5), protected) == [True, True, True, True, False]


def test_traffic_of_the_flood_is_scaled_by_one_factor() -> None:
    """Rates, limit and burst keep the ratios of the incident."""
    crowds = FLOODED.crowds(FLOOD_SETTINGS, BARE)

    assert [(crowd.name, crowd.rate) for crowd in crowds] == [
        (CUSTOMERS, 20),
        (FLOOD, 180),
        (HEEDFUL, 30),
    ]
    assert FLOODED.environment(FLOOD_SETTINGS) == {"SHOP_TRAFFIC_SCALE": "10.0"}
    [door] = FLOODED.policies(FLOOD_SETTINGS)
    assert (door["amount"], door["window"], door["burst"]) == (10, 1.0, 20)


def test_crowd_survives_the_command_line() -> None:
    """What the load generator reads is what was written."""
    crowd = Crowd(FLOOD, 180.5, 5.0, 9.25)

    assert Crowd.parse(str(crowd)) == crowd


def test_flood_comes_from_one_address_and_customers_from_many() -> None:
    """As the door sees them."""
    customers = {due.address for due in plan(Crowd(CUSTOMERS, 50, 0, 20))}
    flood = {due.address for due in plan(Crowd(FLOOD, 50, 0, 20))}

    assert len(customers) > 500
    assert len(flood) == 1
    assert not customers & flood


async def test_browser_reads_when_to_come_back_and_keeps_its_connection() -> None:
    """Two answers over one connection, which the client's address goes with."""
    asked: list[bytes] = []
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        for fields in (b"Retry-After: 7\r\n", b""):
            asked.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(b"HTTP/1.1 429 Too Many Requests\r\n" + fields + b"Content-Length: 2\r\n\r\nno")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        async with Browser(f"http://{host}:{port}") as browser:
            answers = [await browser.ask("GET", "/cart?user=ada", "198.18.0.7") for _ in range(2)]

    assert [(answer.status, answer.retry_after) for answer in answers] == [(429, 7.0), (429, None)]
    assert connections == 1
    assert all(b"x-forwarded-for: 198.18.0.7" in request.lower() for request in asked)


@pytest.mark.parametrize("nonsense", [b"", b"HTTP/1.1 200 OK\r\nContent-", b"what?\r\n\r\n"])
async def test_browser_tells_an_answer_that_breaks_off(nonsense: bytes) -> None:
    """No answer, half of one, and none of HTTP."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(nonsense)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        async with Browser(f"http://{host}:{port}") as browser:
            with pytest.raises(BrokenError):
                await browser.ask("GET", "/", "198.18.0.7")


def test_calls_without_an_answer_last_until_the_run_is_over() -> None:
    """Those that are answered afterwards change nothing any more."""
    recorder = Recorder(Run("bare", SETTINGS.spans()))
    for line in ({"call": 1, "of": "catalogue"}, {"call": 2, "of": "currency"}, {"ended": 1}):
        recorder.hear("frontend", line)
    recorder.finish()
    recorder.hear("frontend", {"ended": 2})
    recorder.hear("frontend", {"call": 3, "of": "catalogue"})

    assert [call.service for call in recorder.run.calls] == ["catalogue", "currency"]
    assert all(call.seconds >= 0 for call in recorder.run.calls)


def test_report_needs_nothing_but_itself(tmp_path: Path) -> None:
    page = _written(tmp_path).read_text(encoding="utf-8")

    assert not re.findall(r"""(?:src|href)\s*=(?!"#)|url\(|@import|https?:""", page)
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

    incident = raw["incidents"]["a4"]
    assert [len(run["samples"]) for run in incident["runs"]] == [70, 70]
    assert [check["held"] for check in incident["checks"]] == [True] * 4


def _written(out: Path) -> Path:
    runs = [_run("bare", 2.5), _run("protected", 0.1)]
    runs[1].transitions = [
        Transition(3.5, "currency: rates-api", "open"),
        Transition(5.0, "currency: rates-api", "half-open"),
    ]
    # Too short for a single checkout: its percentile is not a number.
    runs[0].spans.append(Span("", 7.0, 7.05))
    outcomes = {run.version: _outcome(run) for run in runs}
    runs[0].spans.pop()
    checks = SLOW_API.checks(SETTINGS, *outcomes.values())
    return write(out, [Played(SLOW_API, SETTINGS, outcomes, checks)])


@pytest.mark.slow
@pytest.mark.faults
async def test_shop_is_up_while_open_and_gone_afterwards(tmp_path: Path) -> None:
    async with httpx.AsyncClient() as http:
        async with running_shop(tmp_path) as shop:
            await shop.wait_until_up(http)
            page = await http.get(shop.urls["frontend"] + "/?currency=EUR")

        assert page.status_code == 200
        for url in shop.urls.values():
            with pytest.raises(httpx.ConnectError):
                await http.get(url)


@pytest.mark.slow
@pytest.mark.faults
async def test_service_that_dies_is_told_by_name(tmp_path: Path) -> None:
    async with httpx.AsyncClient() as http, running_shop(tmp_path) as shop:
        await shop.wait_until_up(http)
        shop._processes["currency"].kill()
        await shop._processes["currency"].wait()

        with pytest.raises(ServiceDiedError, match="currency ended with code -9"):
            await shop.check()


_PARENT = """
import asyncio, pathlib, signal, sys
import httpx
from examples.children import listen, spawned, url_of

async def main():
    with listen() as bound:
        arguments, descriptor = ["catalogue", "--fd", str(bound.fileno())], [bound.fileno()]
        child = spawned("examples.shop.service", arguments, pathlib.Path(sys.argv[1]), pass_fds=descriptor)
        async with child, httpx.AsyncClient(timeout=20) as http:
            (await http.get(url_of(bound) + "/healthz")).raise_for_status()
            print(url_of(bound), flush=True)
            bound.close()
            await asyncio.sleep(60)

# A job in the background may have been told to ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_child_ends_with_its_parent(tmp_path: Path, by: signal.Signals) -> None:
    """However the parent ends."""
    command = [sys.executable, "-c", _PARENT, str(tmp_path / "child.log")]
    environment, null = {**os.environ, "SHOP_URLS": "{}"}, subprocess.DEVNULL
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=null, text=True
    ) as parent:
        assert parent.stdout is not None
        url = parent.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:")
        parent.send_signal(by)
        parent.wait()

    with httpx.Client(transport=httpx.HTTPTransport(retries=0)) as http:
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
