"""Incident A4 as it was, in its own seconds, and how it is played here."""

from __future__ import annotations

from dataclasses import dataclass

from examples.shop.figures import FAULT, Span
from examples.shop.timing import scaled

# The external rates API goes from 100 ms to 12 s and goes on answering 200. Customers wait 15 s at most. A
# checkout used to take 2 s: an answer that takes more than twice that is not counted as a good one.
CALM_LATENCY = 0.1
FAULT_LATENCY = 12.0
PATIENCE = 15.0
GOOD_WITHIN = 4.0
RATE = 150.0


@dataclass(frozen=True, slots=True)
class Settings:
    """How the incident is played: requests per second, and how many seconds each phase lasts."""

    rate: float
    warm_up: float
    calm: float
    fault: float
    recovery: float

    def spans(self) -> list[Span]:
        """Return the phases one after the other."""
        spans, start = [], 0.0
        lengths = {"warm-up": self.warm_up, "calm": self.calm, FAULT: self.fault, "recovery": self.recovery}
        for name, length in lengths.items():
            spans.append(Span(name, start, start + length))
            start += length
        return spans


def api_latency(span: Span) -> float:
    """Return how long the rates API takes to answer in a phase, in seconds of the demo."""
    return scaled(FAULT_LATENCY if span.name == FAULT else CALM_LATENCY)
