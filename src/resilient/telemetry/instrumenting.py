"""Switching telemetry on and off."""

from __future__ import annotations

import importlib
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, Final

from ..engine import living, params
from ..engine.measure import Metered
from ..events import log_fault
from .collecting import Collector
from .logs import Narrator, Sinks
from .spans import Annotator

if TYPE_CHECKING:
    from opentelemetry._logs import LoggerProvider
    from opentelemetry.metrics import MeterProvider

# Where metrics are defined. Instruments are made of all of them at once, and not when the first pool is made:
# that may be within a collection, whose lock making one would wait for.
_DEFINING: Final = ("..policies.measures", "..pool.measures", "..health.measures", ".connections")

__all__ = ["exclude", "include", "instrument", "uninstrument"]


class _Excluded:
    """The names of which nothing is to be told: those of the excluded that live."""

    def __init__(self) -> None:
        self._places: dict[str, list[living.Place]] = {}

    def __contains__(self, name: object) -> bool:
        places = self._places.get(name) if isinstance(name, str) else None  # nearly always None
        return places is not None and any(place.excluded and place() is not None for place in places)

    def add(self, source: Metered) -> None:
        """Have nothing told of *source*."""
        place = living.forget(source)
        for name, places in list(self._places.items()):
            left = [one for one in places if one.excluded and one() is not None and one is not place]
            self._places[name] = left
            if not left:
                del self._places[name]
        if place is not None:
            self._places.setdefault(source.name, []).append(place)


# One for each provider, for ever: the SDK keeps instruments that were made once, and a second set of them
# would be reported beside the first.
_collectors: weakref.WeakKeyDictionary[Any, Collector] = weakref.WeakKeyDictionary()
_of_application: list[Collector] = []
_listening: list[Narrator | Annotator] = []
_excluded = _Excluded()
_lock = threading.RLock()


def instrument(
    *,
    meter_provider: MeterProvider | None = None,
    logger_provider: LoggerProvider | None = None,
    logs: Sinks | None = "both",
    spans: bool = True,
) -> None:
    """Report to OpenTelemetry what every policy, pool, check and limiter counts, and what happens to them.

    Metrics are read when somebody collects: calls that go well cost no more than before. What was counted
    before is told, too. Called again, it reports to what it is given then, and no more to what it was given
    before.

    Args:
        meter_provider: where metrics go. None: to the application's, which may be set later.
        logger_provider: where log records of rare events go. None: to the application's, too.
        logs: "otel" has them go there, "logging" to the logger `resilient` of `logging`, "both" to both; None
            to neither.
        spans: whether events are noted on the span of the call that they happened to, where it is recorded.

    Raises:
        TypeError: a provider is none, or *spans* is neither True nor False.
        ValueError: *logs* is none of these words.

    Concurrency: safe from any thread. To be called once in each process, before or after a fork.
    """
    _check("meter_provider", meter_provider, "get_meter")
    _check("logger_provider", logger_provider, "get_logger")
    listeners: list[Narrator | Annotator] = []
    if logs is not None:
        params.one_of("logs", logs, ("both", "otel", "logging"))
        listeners.append(Narrator(logger_provider, to=logs, exclude=_excluded))
    if params.flag("spans", spans):
        listeners.append(Annotator(exclude=_excluded))
    with _lock:
        uninstrument()
        for module in _DEFINING:
            importlib.import_module(module, __package__)
        collector = _collector_for(meter_provider)
        collector.enabled = True
        collector.make_instruments()
        for listener in listeners:
            listener.start()
            _listening.append(listener)


def uninstrument() -> None:
    """Report nothing any more.

    Concurrency: safe from any thread; a collection that is under way may still be told.
    """
    with _lock:
        for collector in _all():
            collector.enabled = False
        while _listening:
            _listening.pop().stop()


def exclude(*sources: Metered) -> None:
    """Report nothing of *sources* any more: no metrics, no log records, nothing on spans.

    Args:
        *sources: policies, pools and whatever else has measures. Events are told apart by name: those of
            others that have the same name are left out, too.

    Raises:
        TypeError: one of them has no measures.

    Concurrency: safe from any thread.
    """
    for source in _checked(sources):
        with _lock:
            _excluded.add(source)


def include(*sources: Metered) -> None:
    """Report *sources* from now on, for as long as they live: those that were excluded, or others' own.

    Not to be called while metrics are collected: their instruments are made here.

    Args:
        *sources: policies, pools, or anything that has `kind`, `name` and `measures()`.

    Raises:
        TypeError: one of them has no measures.

    Concurrency: safe from any thread. None of them is kept alive.
    """
    for source in _checked(sources):
        try:
            living.remember(source, counts=False)
        except TypeError:
            params.refuse(TypeError, "sources", "must be such that they can be referred to weakly", source)
        try:
            list(source.measures())  # by now its metrics are defined
        except Exception:  # noqa: BLE001 - it may do better when it is collected
            log_fault("the measures of %r cannot be read", source)
    for collector in _all():
        collector.make_instruments()


def _checked(sources: tuple[Any, ...]) -> tuple[Metered, ...]:
    for source in sources:
        # Whatever a class of somebody else's says it has.
        words: tuple[Any, ...] = (getattr(source, "kind", None), getattr(source, "name", None))
        if not (isinstance(source, Metered) and all(isinstance(word, str) for word in words)):
            params.refuse(TypeError, "sources", "must have kind, name and measures()", source)
    return sources


def _check(parameter: str, provider: object, method: str) -> None:
    if provider is None:
        return
    if isinstance(provider, type) or not callable(getattr(provider, method, None)):
        rule = f"must be one of OpenTelemetry's providers, with {method}(), or None"
        params.refuse(TypeError, parameter, rule, provider)


def _collector_for(provider: MeterProvider | None) -> Collector:
    if provider is not None:
        if provider not in _collectors:
            _collectors[provider] = Collector(provider)
        return _collectors[provider]
    if not _of_application:
        _of_application.append(Collector())
    return _of_application[0]


def _all() -> list[Collector]:
    return [*_of_application, *_collectors.values()]


def _renew() -> None:
    global _lock  # noqa: PLW0603
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
