"""Was the incident prevented? The demo's promises, each with what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from examples.shop.figures import Summary

Summaries = Mapping[str, Summary]


@dataclass(frozen=True, slots=True)
class Check:
    """A promise, what was measured, and whether it held."""

    promise: str
    measured: str
    held: bool


def checks(bare: Summaries, protected: Summaries) -> list[Check]:
    """Compare two runs, each a summary by phase, with what the demo promises."""
    return [
        _incident_happens(bare["calm"], bare["fault"]),
        _few_errors(protected["fault"]),
        _stays_fast(protected["calm"], protected["fault"]),
        _spares_the_api(bare, protected),
    ]


def _incident_happens(calm: Summary, fault: Summary) -> Check:
    slower = fault.checkout_p99 / calm.checkout_p99
    return Check(
        "bare: checkout p99 in the fault is at least 5x calm, or more than 5 % of requests fail",
        f"{slower:.1f}x, {fault.error_ratio:.1%} failed",
        slower >= 5 or fault.error_ratio > 0.05,
    )


def _few_errors(fault: Summary) -> Check:
    return Check(
        "protected: less than 1 % of requests fail in the fault",
        f"{fault.error_ratio:.2%} ({fault.errors} of {fault.requests})",
        fault.error_ratio < 0.01,
    )


def _stays_fast(calm: Summary, fault: Summary) -> Check:
    slower = fault.p99 / calm.p99
    return Check(
        "protected: p99 in the fault is below 2x its calm value",
        f"{slower:.2f}x ({calm.p99 * 1000:.0f} → {fault.p99 * 1000:.0f} ms)",
        slower < 2,
    )


def _spares_the_api(bare: Summaries, protected: Summaries) -> Check:
    calls = {
        name: sum(s.api_calls for s in run.values()) for name, run in (("bare", bare), ("ours", protected))
    }
    return Check(
        "protected: the rates API gets at least 10x fewer calls",
        f"{calls['bare']} → {calls['ours']}",
        calls["bare"] >= 10 * max(1, calls["ours"]),
    )
