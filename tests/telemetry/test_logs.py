"""Events as log records: which, how many, in whose trace, and that nothing secret is among them."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
from collections.abc import Generator
from typing import Any, get_type_hints

import pytest
from opentelemetry import context as otel_context
from opentelemetry._logs import SeverityNumber, _internal
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY
from opentelemetry.sdk._logs import LoggerProvider, LoggingHandler, LogRecordProcessor
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.trace import TracerProvider
from tests.docs.pages import ROOT

from resilient import Cache, CircuitBreaker, Fallback, Retry, Timeout, events
from resilient.events import Announcer, Event, add_listener, error_text, remove_listener
from resilient.telemetry.logs import Narrator, not_exported
from resilient.telemetry.narration import ERROR, NARRATIONS, POLICY_KIND, POLICY_NAME
from resilient.telemetry.spans import Annotator
from resilient.testing import FakeClock

SECRET = "hunter2"
TRACER = TracerProvider().get_tracer("tests")
KINDS = sorted(
    (kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, Event)),
    key=lambda kind: kind.__name__,
)
KINDS.remove(Event)


class HostileError(Exception):
    """One with a message that must not be told."""


class Kept(logging.Handler):
    """Keeps the records it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


class Exported:
    """A provider that keeps what it is given in memory."""

    def __init__(self) -> None:
        self.exporter = InMemoryLogRecordExporter()
        self.provider = LoggerProvider(shutdown_on_exit=False)
        self.provider.add_log_record_processor(SimpleLogRecordProcessor(self.exporter))

    @property
    def records(self) -> list[Any]:
        """Return what was exported, as records of the API."""
        return [kept.log_record for kept in self.exporter.get_finished_logs()]

    @property
    def names(self) -> list[str]:
        """Return the names of the events that were exported."""
        return [record.event_name for record in self.records]


@pytest.fixture
def exported() -> Exported:
    """Where OpenTelemetry's records go."""
    return Exported()


@pytest.fixture
def kept() -> Generator[Kept]:
    """Where the records of `logging` go."""
    handler, logger = Kept(), logging.getLogger("resilient")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.setLevel(level)
    logger.removeHandler(handler)


@pytest.fixture
def narrator(exported: Exported) -> Generator[Narrator]:
    """One that tells both of everything, on a clock that stands still."""
    narrator = Narrator(exported.provider, clock=FakeClock())
    narrator.start()
    yield narrator
    narrator.stop()


def example(kind: type[Event], name: str = "shop") -> Event:
    """Return an event of *kind* with a secret in every field that may hold something from outside."""
    ours = {
        "policy": name,
        "budget": "shop-budget",
        "error": error_text(HostileError(f"token={SECRET}")),
        "where": "shop.py:7 in pay",
        "mode": "forced open",
        "rung": "local",
        "previous": "shared",
        "status": "fail",
    }
    values = {float: 1.5, int: 3, bool: True, float | None: 1.5, tuple[str, ...]: (SECRET,)}
    hints = get_type_hints(kind)
    fields = [field.name for field in dataclasses.fields(kind)]
    return kind(*(ours.get(field, values.get(hints[field], SECRET)) for field in fields))


def tell(event: Event) -> None:
    """Have *event* announced by a policy of its name."""
    Announcer().announce(event)


def exhaust() -> None:
    """Let a retry give up."""
    with pytest.raises(LookupError):
        Retry(on=LookupError, attempts=1, name="shop").call({}.__getitem__, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_event_is_told_without_what_may_come_from_outside(
    kind: type[Event], narrator: Narrator, exported: Exported, kept: Kept
) -> None:
    """Each has a row in the table, and neither record, nor the span, has a secret in it."""
    annotator = Annotator()
    annotator.start()
    narration = NARRATIONS[kind]

    with TRACER.start_as_current_span("call") as span:
        tell(example(kind))
    annotator.stop()

    (record,) = exported.records
    assert record.event_name == narration.name
    assert record.attributes[POLICY_NAME] == "shop"
    assert record.attributes.get(POLICY_KIND) == narration.kind
    assert set(record.attributes) - {POLICY_NAME, POLICY_KIND} == set(narration.facts)
    assert record.attributes.get(ERROR, "HostileError") == "HostileError"
    assert "shop" in str(record.body)
    assert [vars(line)["otel.event.name"] for line in kept.records] == (
        [] if narration.logged else [narration.name]
    )
    told = f"{record.body} {dict(record.attributes)} {[vars(line) for line in kept.records]}"
    assert SECRET not in told
    assert SECRET not in str(dict(span.attributes or {}))


def test_names_are_unique_and_follow_the_rules() -> None:
    """Below one prefix, in lower case, each of its own; so are the names of the facts."""
    names = [narration.name for narration in NARRATIONS.values()]

    assert set(NARRATIONS) == set(KINDS)
    assert len(set(names)) == len(names)
    facts = {fact for narration in NARRATIONS.values() for fact in narration.facts} - {ERROR}
    for name in {*names, *facts}:
        assert name.startswith("resilient.")
        assert name == name.lower()
        assert name.replace(".", "").replace("_", "").isalpha()


def test_reference_has_the_table() -> None:
    """What the docs say of names, severities and attributes is what is told: none changes unnoticed."""
    page = (ROOT / "docs" / "reference" / "events.md").read_text()

    for kind, narration in NARRATIONS.items():
        severity = narration.severity.name + (", INFO" if narration.relief is not None else "")
        facts = ", ".join(f"`{fact}`" for fact in narration.facts) or "-"
        row = f"| `{kind.__name__}` | `{narration.name}` | {severity} | {facts} |"
        assert row in page


def test_hostile_errors_of_real_calls_are_told_by_their_class_only(
    narrator: Narrator, exported: Exported, kept: Kept
) -> None:
    """Through a breaker, a retry, a fallback and a cache, whatever their errors say."""
    clock = FakeClock()
    cache = Cache("rates", ttl=1.0, stale_if_error=60.0, clock=clock)
    good = True

    @Fallback("instead", on=HostileError)
    @Retry(on=HostileError, attempts=2, wait=0.0)
    @CircuitBreaker("payments", fail_max=4)
    def pay() -> str:
        raise HostileError(SECRET)

    @cache
    def rate(_key: str) -> float:
        if good:
            return 1.0
        raise HostileError(f"{SECRET}: Authorization")

    assert [pay(), pay()] == ["instead", "instead"]
    rate(SECRET)
    good = False
    clock.advance(2.0)
    assert rate(SECRET) == 1.0

    assert exported.names == [
        "resilient.retry.scheduled",
        "resilient.retry.exhausted",
        "resilient.fallback.used",
        "resilient.retry.scheduled",
        "resilient.circuit_breaker.opened",
        "resilient.retry.exhausted",
        "resilient.fallback.used",
        "resilient.cache.stale_served",
    ]
    errors = {record.attributes.get(ERROR) for record in exported.records}
    assert errors == {"HostileError", None}
    assert SECRET not in str([(record.body, dict(record.attributes)) for record in exported.records])
    assert SECRET not in str([vars(line) for line in kept.records])


def test_what_is_no_class_is_not_told(narrator: Narrator, exported: Exported) -> None:
    """A text that does not begin with the class of an error, as one that is cut short."""
    long = type("E" * 300, (Exception,), {})
    for error in ("a result that will not do", SECRET, f"{SECRET} and: more", error_text(long(SECRET))):
        tell(events.FallbackUsed("shop", error))

    assert [record.attributes[ERROR] for record in exported.records] == ["_OTHER"] * 4


@pytest.mark.parametrize(
    ("event", "severity", "level"),
    [
        (events.RetryScheduled("r", 1, 0.1, "E: e"), SeverityNumber.DEBUG, logging.DEBUG),
        (events.CircuitClosed("b"), SeverityNumber.INFO, logging.INFO),
        (events.CircuitOpened("b", "", 30.0, 1), SeverityNumber.WARN, logging.WARNING),
        (events.RungChanged("l", "local", "shared", ""), SeverityNumber.WARN, logging.WARNING),
        (events.RungChanged("l", "shared", "local", ""), SeverityNumber.INFO, logging.INFO),
        (events.MaintenanceSwitched("m", True, None, None), SeverityNumber.WARN, logging.WARNING),
        (events.MaintenanceSwitched("m", False, None, None), SeverityNumber.INFO, logging.INFO),
    ],
)
def test_severity_says_whether_somebody_should_look(
    event: Event, severity: SeverityNumber, level: int, exported: Exported, kept: Kept
) -> None:
    """The same in both; what says that all is well again is no warning."""
    narrator = Narrator(exported.provider)
    narrator.start()
    tell(event)
    narrator.stop()

    assert [record.severity_number for record in exported.records] == [severity]
    assert [line.levelno for line in kept.records] == [level]
    assert exported.records[0].body == kept.records[0].getMessage()


def test_so_many_of_a_kind_go_out_in_a_minute(exported: Exported) -> None:
    """Of each policy; the next one says how many did not."""
    clock = FakeClock()
    narrator = Narrator(exported.provider, to="otel", per_minute=3, clock=clock)
    narrator.start()
    for _ in range(50):
        tell(events.FallbackUsed("a", "E: e"))
        clock.advance(1.0)
    tell(events.FallbackUsed("b", "E: e"))
    tell(events.CallTimedOut("a", 1.0, False))
    clock.advance(9.9)
    tell(events.FallbackUsed("a", "E: e"))
    clock.advance(0.1)
    for _ in range(2):
        tell(events.FallbackUsed("a", "E: e"))
    clock.advance(60.0)
    tell(events.FallbackUsed("a", "E: e"))
    tell(events.FallbackUsed("a", "E: e"))
    narrator.stop()

    told = [
        (record.attributes[POLICY_NAME], record.event_name, record.attributes.get("resilient.suppressed"))
        for record in exported.records
    ]
    assert told == [
        *[("a", "resilient.fallback.used", None)] * 3,
        ("b", "resilient.fallback.used", None),
        ("a", "resilient.timeout.expired", None),
        ("a", "resilient.fallback.used", 48),
        ("a", "resilient.fallback.used", 1),
        ("a", "resilient.fallback.used", None),
    ]
    assert exported.records[5].body.endswith("(48 more like this were not written)")


def test_counting_what_goes_out_takes_bounded_memory(narrator: Narrator, exported: Exported) -> None:
    """However many names there are, the longest unused is forgotten."""
    for number in range(1200):
        tell(events.CircuitClosed(str(number)))

    assert [policy for _, policy in narrator._allowance._series] == [str(n) for n in range(200, 1200)]
    assert len(exported.records) == 1200


def test_events_have_the_trace_of_their_call_whoever_delivers_them(
    narrator: Narrator, exported: Exported
) -> None:
    """A thread that delivers for another one, and one that takes over what has piled up."""
    announcer, all_told, traces = Announcer(), threading.Event(), dict[str, int]()

    def other_call() -> None:
        with TRACER.start_as_current_span("other") as span:
            traces["other"] = span.get_span_context().trace_id
            announcer.announce(events.CircuitHalfOpened("other"))

    def listener(event: Event) -> None:
        if event.policy == "first":
            thread = threading.Thread(target=other_call)
            thread.start()
            thread.join()
            for number in range(30):
                with TRACER.start_as_current_span("piled up", otel_context.Context()) as span:
                    traces[str(number)] = span.get_span_context().trace_id
                    announcer.post(events.CircuitHalfOpened(str(number)))
        if event.policy == "last":
            all_told.set()

    add_listener(listener)  # it is told after the narrator
    with TRACER.start_as_current_span("first") as span:
        traces["first"] = span.get_span_context().trace_id
        announcer.announce(events.CircuitHalfOpened("first"))
    announcer.announce(events.CircuitHalfOpened("last"))
    assert all_told.wait(5.0)
    remove_listener(listener)

    told = {record.attributes[POLICY_NAME]: record.trace_id for record in exported.records}
    assert told == {**traces, "last": 0}
    assert len(set(told.values())) == 33


async def test_events_have_the_trace_of_their_task(narrator: Narrator, exported: Exported) -> None:
    """Tasks that share a policy do not share a trace."""
    retry, traces = Retry(on=LookupError, attempts=2, wait=0.0, budget=None), dict[int, str]()

    @retry
    async def call() -> None:
        await asyncio.sleep(0)
        raise LookupError

    async def request(name: str) -> None:
        with TRACER.start_as_current_span(name) as span:
            traces[span.get_span_context().trace_id] = name
            with pytest.raises(LookupError):
                await call()

    await asyncio.gather(request("a"), request("b"))

    told = [(record.event_name.rpartition(".")[2], traces[record.trace_id]) for record in exported.records]
    assert sorted(told) == [("exhausted", "a"), ("exhausted", "b"), ("scheduled", "a"), ("scheduled", "b")]


def test_provider_may_be_set_later(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """The application's, which is set up after its policies; until then there is nothing to count."""
    monkeypatch.setattr(_internal, "_LOGGER_PROVIDER", None)
    narrator = Narrator(to="otel", per_minute=1)
    narrator.start()
    tell(events.CircuitClosed("shop"))
    monkeypatch.setattr(_internal, "_LOGGER_PROVIDER", exported.provider)
    tell(events.CircuitClosed("shop"))
    narrator.stop()

    assert exported.names == ["resilient.circuit_breaker.closed"]
    assert "resilient.suppressed" not in exported.records[0].attributes
    (record,) = exported.exporter.get_finished_logs()
    assert record.instrumentation_scope is not None
    assert record.instrumentation_scope.name == "resilient"
    assert record.instrumentation_scope.schema_url == "https://opentelemetry.io/schemas/1.44.0"


def test_without_a_provider_there_is_logging(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody needs an SDK to be told."""
    monkeypatch.setattr(_internal, "_LOGGER_PROVIDER", None)
    narrator = Narrator()
    narrator.start()
    tell(events.CircuitOpened("payments", SECRET, 30.0, 1))
    narrator.stop()

    assert [line.getMessage() for line in kept.records] == ["circuit 'payments' opened for 30 s"]
    assert vars(kept.records[0])["resilient.circuit_breaker.open_for"] == 30.0


class Breaking(LogRecordProcessor):
    """One that was not written as it should be."""

    def on_emit(self, log_record: object) -> None:
        raise OSError(SECRET)

    def shutdown(self) -> None: ...

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return True


def test_failing_exporter_breaks_nothing(kept: Kept) -> None:
    """Neither the call nor the other records; it is reported once."""
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(Breaking())
    narrator = Narrator(provider)
    narrator.start()
    exhaust()
    exhaust()
    narrator.stop()

    told = [line.getMessage() for line in kept.records if line.levelno == logging.WARNING]
    assert len(told) == 2
    faults = [line.getMessage() for line in kept.records if line.levelno == logging.ERROR]
    assert len(faults) == 1
    assert faults[0].endswith("failed; it will not be reported again")


def test_failing_handler_breaks_nothing(narrator: Narrator, exported: Exported, kept: Kept) -> None:
    """Neither the call nor what goes to OpenTelemetry."""
    kept.emit = raising  # type: ignore[method-assign]
    exhaust()
    exhaust()

    assert exported.names == ["resilient.retry.exhausted"] * 2


def raising(_record: logging.LogRecord) -> None:
    raise OSError(SECRET)


@pytest.mark.parametrize("own", [True, False])
def test_handler_that_uses_a_policy_is_not_told_of_itself(
    narrator: Narrator, exported: Exported, kept: Kept, own: bool
) -> None:
    """It would go on for ever: each record would make the next one, of its own policy or of the one told."""
    policy = Retry(on=LookupError, attempts=1, name="handler")
    told = policy if own else Retry(on=LookupError, attempts=1, name="told")
    heard: list[Event] = []

    def use(_record: logging.LogRecord) -> None:
        with pytest.raises(LookupError):
            policy.call({}.__getitem__, 1)

    kept.emit = use  # type: ignore[method-assign]
    add_listener(heard.append)
    with pytest.raises(LookupError):
        told.call({}.__getitem__, 1)
    remove_listener(heard.append)

    assert len(heard) == 2  # others are told of it
    assert [record.attributes[POLICY_NAME] for record in exported.records] == [told.name]


def test_what_happens_in_an_exporter_is_not_exported(narrator: Narrator, exported: Exported) -> None:
    """OpenTelemetry marks the context of its exporters, in whatever thread."""
    token = otel_context.attach(otel_context.set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
    exhaust()
    otel_context.detach(token)
    assert exported.names == []

    exhaust()
    assert exported.names == ["resilient.retry.exhausted"]


@pytest.fixture
def bridge(exported: Exported) -> Generator[logging.Handler]:
    """OpenTelemetry's handler on the root logger."""
    with pytest.warns(DeprecationWarning, match="LoggingHandler"):
        handler = LoggingHandler(logger_provider=exported.provider)
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


def test_event_is_exported_once_where_logging_is_exported_too(
    bridge: logging.Handler, narrator: Narrator, exported: Exported, kept: Kept
) -> None:
    """By name; handlers for people have it as well, and other records are exported as before."""
    tell(events.CircuitClosed("shop"))
    logging.getLogger("resilient").warning("something else")

    assert exported.names == ["resilient.circuit_breaker.closed", None]
    assert len(kept.records) == 2
    assert [not_exported(line) for line in kept.records] == [False, True]
    narrator.stop()
    assert bridge.filters == []


def test_events_for_logging_only_reach_its_bridge(
    bridge: logging.Handler, exported: Exported, kept: Kept
) -> None:
    """With the event's name and facts, for whoever collects what is logged."""
    narrator = Narrator(exported.provider, to="logging")
    narrator.start()
    tell(events.CircuitClosed("shop"))
    narrator.stop()

    (record,) = exported.records
    assert record.attributes["otel.event.name"] == "resilient.circuit_breaker.closed"
    assert record.attributes[POLICY_NAME] == "shop"
    assert len(kept.records) == 1


def test_events_for_otel_only_are_not_logged(exported: Exported, kept: Kept) -> None:
    """And those for `logging` are not exported."""
    narrator = Narrator(exported.provider, to="otel")
    narrator.start()
    tell(events.CircuitClosed("shop"))
    narrator.stop()

    assert kept.records == []
    assert len(exported.records) == 1


def test_nothing_is_told_of_excluded_policies(exported: Exported) -> None:
    """Who is excluded may change meanwhile."""
    excluded = {"shop"}
    narrator = Narrator(exported.provider, to="otel", exclude=excluded)
    narrator.start()
    tell(events.CircuitClosed("shop"))
    tell(events.CircuitClosed("other"))
    excluded.clear()
    tell(events.CircuitClosed("shop"))
    narrator.stop()

    assert [record.attributes[POLICY_NAME] for record in exported.records] == ["other", "shop"]


def test_starting_and_stopping_twice_changes_nothing(narrator: Narrator, exported: Exported) -> None:
    """One is told once, and then no more; and after a fork its locks are free."""
    narrator.start()
    tell(events.CircuitClosed("shop"))
    narrator.stop()
    narrator.stop()
    tell(events.CircuitClosed("shop"))
    assert len(exported.records) == 1

    narrator.start()
    holders = [threading.Thread(target=lock.acquire) for lock in (narrator._lock, narrator._allowance._lock)]
    for holder in holders:
        holder.start()
        holder.join()
    narrator.after_fork()
    tell(events.CircuitClosed("shop"))
    assert len(exported.records) == 2


def test_events_of_the_applications_own_are_none_of_ours(narrator: Narrator, exported: Exported) -> None:
    """Nobody knows which of their fields may be told."""

    @dataclasses.dataclass(frozen=True)
    class Own(Event):
        secret: str

    tell(Own("shop", SECRET))

    assert exported.records == []


def test_arguments_are_checked() -> None:
    """With the name, the rule and the value."""
    with pytest.raises(ValueError, match="to must be one of 'both', 'otel', 'logging', got 'all'"):
        Narrator(to="all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="per_minute must be"):
        Narrator(per_minute=0)


def test_timeouts_are_told_without_a_kind(narrator: Narrator, exported: Exported) -> None:
    """Several kinds of policies tell them."""
    assert POLICY_KIND not in NARRATIONS[events.CallTimedOut].facts
    timeout, release = Timeout(0.01, threads=1, name="slow"), threading.Event()
    with pytest.raises(TimeoutError):
        timeout.call(release.wait, 10.0)
    release.set()

    (record,) = exported.records
    assert dict(record.attributes) == {
        POLICY_NAME: "slow",
        "resilient.timeout.limit": 0.01,
        "resilient.timeout.abandoned": True,
    }
