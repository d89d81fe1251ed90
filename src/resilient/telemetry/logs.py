"""Rare events as log records: named ones of OpenTelemetry, and those of `logging.getLogger("resilient")`."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Container, Iterator
from contextvars import ContextVar
from typing import Final, Literal, TypeAlias, get_args

from opentelemetry._logs import Logger, LoggerProvider, SeverityNumber, get_logger
from opentelemetry.context import (
    _SUPPRESS_INSTRUMENTATION_KEY,  # pyright: ignore[reportPrivateUsage]  # there is no public way
    get_value,
)

from .. import __version__
from ..engine import params
from ..events import Event
from ..typing import Clock
from .listening import Listening
from .narration import NARRATIONS, Fact, Narration

__all__ = ["Narrator", "Sinks", "not_exported"]

Sinks: TypeAlias = Literal["both", "otel", "logging"]
"""Where events go: to OpenTelemetry's Logs API, to `logging`, or to both."""

_log = logging.getLogger("resilient")

_SCHEMA: Final = "https://opentelemetry.io/schemas/1.44.0"
_MINUTE: Final = 60.0
_MOST_SERIES: Final = 1000  # pairs of an event and a policy that are counted; the longest unused give way

_SUPPRESSED: Final = "resilient.suppressed"
_EXPORTED: Final = "resilient.exported"
_EVENT_NAME: Final = "otel.event.name"  # OpenTelemetry's handler for `logging` makes an event's name of it

_LEVELS: Final = {
    SeverityNumber.DEBUG: logging.DEBUG,
    SeverityNumber.INFO: logging.INFO,
    SeverityNumber.WARN: logging.WARNING,
}

# Carried by the context, and so by the context of whatever happens meanwhile, whoever delivers that.
_narrating: ContextVar[bool] = ContextVar("resilient_narrating", default=False)


class Narrator(Listening):
    """Writes events to the log, in the trace of the calls that caused them.

    Of each event of each policy at most *per_minute* go out in a minute; the next one says how many did not
    (`resilient.suppressed`). What is told of which event: `narration.NARRATIONS`. What happens while it
    writes (a handler that uses a policy itself) is not written, nor what happens in an exporter's own thread.

    A record of `logging` goes to all handlers but those that would hand it to OpenTelemetry once more.
    Events that pools and health write to the log in any case go to OpenTelemetry only.

    Args:
        logger_provider: whose logger "resilient" it uses. None: the application's, which may be set later.
        to: where events go: "otel", "logging", or "both".
        exclude: names of policies of which nothing is told. May change; it is asked for each event.
        per_minute: how many of a kind go out in a minute, of each policy; at least 1.
        clock: a monotonic clock, in seconds.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Concurrency: safe from any thread. It holds no lock while handlers and exporters work.
    """

    def __init__(
        self,
        logger_provider: LoggerProvider | None = None,
        *,
        to: Sinks = "both",
        exclude: Container[str] = frozenset(),
        per_minute: int = 10,
        clock: Clock = time.monotonic,
    ) -> None:
        self._provider = logger_provider
        self._to = params.one_of("to", to, get_args(Sinks))
        self._exclude = exclude
        self._allowance = _Allowance(params.count("per_minute", per_minute), params.callback("clock", clock))
        self._logger: Logger | None = None
        super().__init__()

    def stop(self) -> None:
        """Listen no more."""
        super().stop()
        for handler in _bridges():
            handler.removeFilter(not_exported)

    def after_fork(self) -> None:
        """Begin with free locks in a forked child."""
        super().after_fork()
        self._allowance.after_fork()

    def _hear(self, event: Event) -> None:
        narration = NARRATIONS.get(type(event))
        if narration is None or event.policy in self._exclude:  # a class of the application's own, say
            return
        if _narrating.get() or get_value(_SUPPRESS_INSTRUMENTATION_KEY):
            return
        token = _narrating.set(True)
        try:
            self._narrate(event, narration)
        finally:
            _narrating.reset(token)

    def _narrate(self, event: Event, narration: Narration) -> None:
        severity = narration.severity_of(event)
        exporting = self._to != "logging" and self._find_logger()
        writing = self._to != "otel" and not narration.logged and _log.isEnabledFor(_LEVELS[severity])
        if not (exporting or writing):
            return
        suppressed = self._allowance.take((narration.name, event.policy))
        if suppressed is None:
            return
        attributes = narration.attributes_of(event)
        text = narration.text_of(event, attributes)
        if suppressed:
            attributes[_SUPPRESSED] = suppressed
            text = f"{text} ({suppressed} more like this were not written)"
        try:
            if exporting:
                exporting.emit(
                    timestamp=time.time_ns(),
                    severity_number=severity,
                    severity_text=severity.name,
                    event_name=narration.name,
                    attributes=attributes,
                    body=text,
                )
        finally:  # one that fails is no reason for the other one to miss it
            if writing:
                _write(severity, narration.name, text, attributes, exported=bool(exporting))

    def _find_logger(self) -> Logger | None:
        """Return the logger of a provider that somebody has set up; as yet there may be none."""
        if self._logger is None:
            logger = get_logger("resilient", __version__, self._provider, _SCHEMA)
            if type(logger).__module__.startswith("opentelemetry._logs"):
                return None  # what the API has in its place
            self._logger = logger
        return self._logger


def not_exported(record: logging.LogRecord) -> bool:
    """Return whether *record* is to be exported, as a filter of a handler that does so.

    It keeps out events that OpenTelemetry has already. OpenTelemetry's own handlers are given it, where they
    are found on the logger `resilient` or one above; it is for those behind a queue, say.

    Args:
        record: a record of `logging`.
    """
    return not vars(record).get(_EXPORTED, False)


def _write(
    severity: SeverityNumber, name: str, text: str, attributes: dict[str, Fact], *, exported: bool
) -> None:
    extra: dict[str, Fact] = {**attributes, _EVENT_NAME: name}
    if exported:
        extra[_EXPORTED] = True
        for handler in _bridges():
            handler.addFilter(not_exported)  # does nothing where it has it
    _log.log(_LEVELS[severity], text, extra=extra)


def _bridges() -> Iterator[logging.Handler]:
    """Return the handlers that hand records of this logger to OpenTelemetry."""
    logger: logging.Logger | None = _log
    while logger is not None:
        for handler in logger.handlers:
            if any(  # there are two: the SDK's, and that of a package of its own
                kind.__name__ == "LoggingHandler" and kind.__module__.startswith("opentelemetry.")
                for kind in type(handler).__mro__
            ):
                yield handler
        logger = logger.parent if logger.propagate else None


class _Allowance:
    """Grants so many of each series in any minute, and counts those it did not grant."""

    def __init__(self, per_minute: int, clock: Clock) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._series: OrderedDict[tuple[str, str], _Series] = OrderedDict()
        self.after_fork()

    def take(self, key: tuple[str, str]) -> int | None:
        """Return how many were not granted since the last one that was; None if this one is not."""
        with self._lock:
            series = self._series.pop(key, None) or _Series(self._per_minute)
            self._series[key] = series
            if len(self._series) > _MOST_SERIES:
                self._series.popitem(last=False)
            now = self._clock()
            if len(series.granted) == self._per_minute and now - series.granted[0] < _MINUTE:
                series.suppressed += 1
                return None
            series.granted.append(now)
            suppressed, series.suppressed = series.suppressed, 0
            return suppressed

    def after_fork(self) -> None:
        """Begin with a free lock in a forked child."""
        self._lock = threading.RLock()


class _Series:
    """When the last ones of a series were granted, and how many were not since."""

    __slots__ = ("granted", "suppressed")

    def __init__(self, per_minute: int) -> None:
        self.granted: deque[float] = deque(maxlen=per_minute)
        self.suppressed = 0
