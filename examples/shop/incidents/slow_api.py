"""Incident A4: the external rates API goes from 100 ms to 12 s an answer, and goes on answering 200."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from examples.shop import protected as protected_calls
from examples.shop.figures import FAULT, Run, Sample, Span
from examples.shop.incident import (
    BARE,
    CALM_LATENCY,
    GOOD_WITHIN,
    PATIENCE,
    Check,
    Column,
    Exhibit,
    Incident,
    Outcome,
    Settings,
    Tile,
    Version,
)
from examples.shop.report import drawings
from examples.shop.timing import HOUR, SCALE, SHELF_LIFE_SCALE, scaled, shelf_life
from examples.shop.words import seconds, share
from resilient.testing import describe

FAULT_LATENCY = 12.0
RATE = 150.0


class SlowApi(Incident):
    """The rates API turns slow and fails nobody, so nothing alarms; the shop just stops."""

    key = "a4"
    title = "A slow rates API"
    versions = (BARE, Version("protected", ["calls"]))
    difference = Path(protected_calls.__file__)
    defaults = Settings(rate=40, warm_up=3, calm=8, fault=14, recovery=6)
    columns = (
        Column("sent", lambda row: str(row.requests)),
        Column("failed", lambda row: share(row.errors, row.requests)),
        Column("p50", lambda row: seconds(row.p50)),
        Column("p95", lambda row: seconds(row.p95)),
        Column("p99", lambda row: seconds(row.p99)),
        Column("checkout p99", lambda row: seconds(row.checkout_p99)),
        Column("good/s", lambda row: f"{row.goodput:.1f}"),
        Column("API calls", lambda row: str(row.api_calls)),
    )

    def api_latency(self, span: Span) -> float:
        """Return how long the rates API takes to answer in a phase."""
        return scaled(FAULT_LATENCY if span.name == FAULT else CALM_LATENCY)

    def story(self, settings: Settings) -> str:
        """Tell what turns slow."""
        latencies = CALM_LATENCY, FAULT_LATENCY
        real, played = (" to ".join(map(seconds, row)) for row in (latencies, map(scaled, latencies)))
        return (
            f"The external exchange-rates API turns from {real} an answer, and goes on answering 200. "
            f"Played at {settings.rate:g} requests/s, in time scaled by 1/{SCALE:g}: {played}."
        )

    def gauges(self, run: Run, lately: Sequence[Sample]) -> dict[str, str]:
        """Return the calls to the API, and the breakers that are not closed."""
        now = {change.breaker: change.state for change in run.transitions}
        unwell = [f"{breaker} {state}" for breaker, state in now.items() if state != "closed"]
        none = "none" if run.version == "bare" else "all closed"
        calls = str(run.api_calls[-1][1]) if run.api_calls else "0"
        return {"API calls": calls, "breakers": ", ".join(unwell) or none}

    def checks(self, settings: Settings, *outcomes: Outcome) -> list[Check]:
        """Compare two runs with what is promised."""
        bare, protected = outcomes
        return [
            _incident_happens(bare),
            _few_errors(protected),
            _stays_fast(protected),
            _spares_the_api(bare, protected),
        ]

    def tiles(self, *outcomes: Outcome) -> list[Tile]:
        """Return what the fault did to checkouts, requests and the API."""
        return [
            Tile.of("checkout p99 in fault", outcomes, lambda each: seconds(each.fault.checkout_p99)),
            Tile.of(
                "failed requests in fault",
                outcomes,
                lambda each: share(each.fault.errors, each.fault.requests),
            ),
            Tile.of("good answers/s in fault", outcomes, lambda each: f"{each.fault.goodput:.1f}"),
            Tile.of("calls to the rates API", outcomes, lambda each: str(_api_calls(each))),
        ]

    def exhibits(self, settings: Settings, *outcomes: Outcome) -> list[Exhibit]:
        """Return goodput, latency, and what reached the API."""
        runs = [outcome.run for outcome in outcomes]
        names = [run.version for run in runs]
        customers = drawings.goodput(settings, runs) + drawings.latency(settings, runs, 0.99)
        return [
            Exhibit("What the customers saw", drawings.legend(names, "the rates API is slow") + customers),
            Exhibit("What the rates API had to answer", drawings.api_calls(runs) + drawings.breakers(runs)),
        ]

    def facts(self, settings: Settings) -> list[tuple[str, str, str]]:
        """Return how it was played."""
        times = {
            "the rates API answers in, calm": CALM_LATENCY,
            "the rates API answers in, fault": FAULT_LATENCY,
            "customers give up after": PATIENCE,
            "a good answer takes at most": GOOD_WITHIN,
        }
        return [
            *((what, seconds(value), seconds(scaled(value))) for what, value in times.items()),
            ("the cache's hour", seconds(HOUR), seconds(shelf_life(HOUR))),
            ("requests per second", f"{RATE:g}", f"{settings.rate:g}"),
        ]

    def notes(self, settings: Settings) -> list[str]:
        """Say why the two factors are fair."""
        return [
            f"""Latencies, timeouts and waits are all divided by the same number, so every ratio between them
            is the incident's. Cache lifetimes are divided by {SHELF_LIFE_SCALE:g}, or nothing would expire
            while one watches: the cache has to refresh {SHELF_LIFE_SCALE / SCALE:g} times more often than it
            otherwise would, which is against it."""
        ]

    def policies(self, settings: Settings) -> list[dict[str, object]]:
        """Describe what is on the call to the rates API."""
        return describe(protected_calls.rates_api)


def _incident_happens(bare: Outcome) -> Check:
    slower = bare.fault.checkout_p99 / bare.calm.checkout_p99
    return Check(
        "bare: checkout p99 in the fault is at least 5x calm, or more than 5 % of requests fail",
        f"{slower:.1f}x, {bare.fault.error_ratio:.1%} failed",
        slower >= 5 or bare.fault.error_ratio > 0.05,
    )


def _few_errors(protected: Outcome) -> Check:
    fault = protected.fault
    return Check(
        "protected: less than 1 % of requests fail in the fault",
        f"{fault.error_ratio:.2%} ({fault.errors} of {fault.requests})",
        fault.error_ratio < 0.01,
    )


def _stays_fast(protected: Outcome) -> Check:
    calm, fault = protected.calm.p99, protected.fault.p99
    return Check(
        "protected: p99 in the fault is below 2x its calm value",
        f"{fault / calm:.2f}x ({calm * 1000:.0f} → {fault * 1000:.0f} ms)",
        fault < 2 * calm,
    )


def _spares_the_api(bare: Outcome, protected: Outcome) -> Check:
    calls, fewer = _api_calls(bare), _api_calls(protected)
    return Check(
        "protected: the rates API gets at least 10x fewer calls",
        f"{calls} → {fewer}",
        calls >= 10 * max(1, fewer),
    )


def _api_calls(outcome: Outcome) -> int:
    return sum(row.api_calls for row in outcome.phases.values())
