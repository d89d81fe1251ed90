"""What events say of a call, on its span; and the number of a re-sent request, on the span of the request."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import Any, Final

from opentelemetry.trace import Span, SpanKind, get_current_span

from .. import events
from ..engine.resends import resend_count
from ..events import Event, RetryScheduled
from .listening import Listening
from .narration import Fact

__all__ = ["FACTS", "RESEND_COUNT", "Annotator", "anote_resend", "note_resend"]

RESEND_COUNT: Final = "http.request.resend_count"

FACTS: Final[Mapping[type[Event], Callable[[Any], dict[str, Fact]]]] = {
    events.CircuitOpened: lambda event: _breaker(event, "open"),
    events.CircuitHalfOpened: lambda event: _breaker(event, "half_open"),
    events.CircuitClosed: lambda event: _breaker(event, "closed"),
    events.RetryScheduled: lambda event: {
        "resilient.retry.name": event.policy,
        "resilient.retry.attempts": event.attempt + 1,
    },
    events.RetriesExhausted: lambda event: {
        "resilient.retry.name": event.policy,
        "resilient.retry.attempts": event.attempts,
        "resilient.retry.exhausted": True,
    },
    events.BudgetExhausted: lambda _event: {"resilient.retry_budget.exhausted": True},
    events.CallTimedOut: lambda event: {
        "resilient.timeout.name": event.policy,
        "resilient.timeout.limit": event.seconds,
    },
    events.FallbackUsed: lambda event: {
        "resilient.fallback.name": event.policy,
        "resilient.fallback.used": True,
    },
    events.StaleServed: lambda event: {
        "resilient.cache.name": event.policy,
        "resilient.cache.stale": True,
        "resilient.cache.age": event.age,
    },
    events.RungChanged: lambda event: {
        "resilient.rate_limiter.name": event.policy,
        "resilient.rate_limiter.rung": event.rung,
    },
}
"""The attributes that an event leaves on the span of its call, by the class of the event."""


class Annotator(Listening):
    """Notes on the span of a call what events say of it, if that span is recording.

    What happens twice within a span is noted as it was the last time.

    Args:
        exclude: names of policies of which nothing is noted. May change; it is asked for each event.

    Concurrency: safe from any thread.
    """

    def __init__(self, *, exclude: Container[str] = frozenset()) -> None:
        self._exclude = exclude
        super().__init__()

    def _hear(self, event: Event) -> None:
        facts = FACTS.get(type(event))
        if facts is None or event.policy in self._exclude:
            return
        span = get_current_span()
        if not span.is_recording():
            return
        span.set_attributes(facts(event))
        if isinstance(event, RetryScheduled) and _is_of_http_client(span):
            # The retry is inside of what makes the span: all attempts share it.
            span.set_attribute(RESEND_COUNT, event.attempt)


def note_resend(span: Span, *_request: object) -> None:
    """Note on *span* how often its request has been sent before, for retries; nothing for a first attempt.

    It is a `request_hook` for OpenTelemetry's instrumentations of HTTP clients. They call it for each
    request, in the context of the attempt that sends it.

    Args:
        span: the span of the request.
        *_request: whatever else the instrumentation gives to its hooks.
    """
    count = resend_count()
    if count and span.is_recording():
        span.set_attribute(RESEND_COUNT, count)


async def anote_resend(span: Span, *_request: object) -> None:
    """Do as `note_resend`, as an `async_request_hook`.

    Args:
        span: the span of the request.
        *_request: whatever else the instrumentation gives to its hooks.
    """
    note_resend(span)


def _breaker(event: Event, state: str) -> dict[str, Fact]:
    return {"resilient.circuit_breaker.name": event.policy, "resilient.circuit_breaker.state": state}


def _is_of_http_client(span: Any) -> bool:
    # The API has neither to read; the SDK's spans do.
    if getattr(span, "kind", None) is not SpanKind.CLIENT:
        return False
    attributes = getattr(span, "attributes", None) or {}
    return "http.request.method" in attributes or "http.method" in attributes
