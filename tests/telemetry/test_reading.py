"""What is told of many sources that come and go: by name, added up, and counters never fall."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from tests.support.collected import instrumented, series, values

from resilient import Bulkhead, CircuitBreaker, RateLimiter, Retry, Timeout
from resilient.engine import living
from resilient.engine.latency import Recorder
from resilient.engine.measure import defined
from resilient.policies.measures import BREAKER_FAILURE_RATIO, BULKHEAD_ACTIVE, CALLS, WAIT_DURATION
from resilient.telemetry import exclude, include
from resilient.telemetry.reading import _MOST_DEPARTED, Reader
from resilient.testing import FakeClock

HEARD = frozenset(defined())


class Source:
    """Something of a user's own that has measures."""

    kind = "ShopQueue.main"

    def __init__(self, name: Any = "orders", measures: Any = ()) -> None:
        self.name = name
        self.told = measures

    def measures(self) -> Any:
        if self.told is RuntimeError:
            raise RuntimeError("no")
        return self.told


@pytest.fixture
def reader() -> Iterator[InMemoryMetricReader]:
    """Collects from all that lives, and nothing of other tests does."""
    gc.collect()
    made = InMemoryMetricReader()
    with instrumented(made):
        yield made


def work(breaker: CircuitBreaker, times: int) -> None:
    for _ in range(times):
        breaker.call(int)


class TestNames:
    def test_kinds_are_in_snake_case(self, reader: InMemoryMetricReader) -> None:
        """As OpenTelemetry has words of several parts."""
        sources = [
            CircuitBreaker("n"), Retry(on=OSError, name="n"), Timeout(1.0, name="n"), Bulkhead("n", 1),
            RateLimiter("1/second", name="n"), Source("n", [(CALLS, 1, ("success",))]),
        ]  # fmt: skip
        include(sources[-1])
        found = {
            one.attributes["resilient.policy.kind"]
            for one in series(reader)
            if one.attributes.get("resilient.policy.name") == "n"
        }

        assert found == {"circuit_breaker", "retry", "timeout", "bulkhead", "rate_limiter", "shop_queue_main"}

    def test_sources_of_one_name_are_told_together(self, reader: InMemoryMetricReader) -> None:
        """Counters, numbers and distributions are added up; of a share, the largest is told."""
        kept = []
        for number in (1, 2, 3):
            recorder = Recorder(FakeClock())
            for _ in range(number):
                recorder.record(0.2)
            measures = [
                (CALLS, 10 * number, ("success",)), (BULKHEAD_ACTIVE, number, ()),
                (BREAKER_FAILURE_RATIO, number / 10, ()), (WAIT_DURATION, recorder.histogram(), ()),
            ]  # fmt: skip
            kept.append(Source(measures=measures))
        include(*kept)

        assert values(reader, "orders") == {
            "calls success": 60, "bulkhead.active": 6, "circuit_breaker.failure_ratio": 0.3,
            "wait.duration": 6,
        }  # fmt: skip

    def test_name_that_is_shared_for_a_while(self, reader: InMemoryMetricReader) -> None:
        """What is told of it keeps its attributes when the other one goes, and when it comes back."""
        one, other = CircuitBreaker("both"), CircuitBreaker("both")
        work(one, 3)
        work(other, 4)
        before = values(reader, "both")
        exclude(other)
        without = values(reader, "both")
        include(other)

        assert before["calls success"] == 7
        assert without.keys() == before.keys()
        assert values(reader, "both") == before


class TestComingAndGoing:
    def test_counters_of_those_that_are_gone_stay(self, reader: InMemoryMetricReader) -> None:
        """What ten of one name had counted, one after the other; states are those of the living."""
        stood_at = 0.0
        for number in range(1, 11):
            breaker = CircuitBreaker("fleeting")
            work(breaker, number)
            found = values(reader, "fleeting")
            assert found["calls success"] == stood_at + number
            assert found["circuit_breaker.status closed"] == 1
            stood_at = found["calls success"]
            del breaker
            gc.collect()  # it refers to itself

        last = values(reader, "fleeting")
        assert last["calls success"] == stood_at
        assert "circuit_breaker.status closed" not in last
        assert last["call.duration success"] == stood_at

    def test_one_that_dies_in_the_middle_of_a_reading(self, reader: InMemoryMetricReader) -> None:
        """Collecting allocates a lot, so that the garbage collector comes by: what it counted stays."""
        dying: list[CircuitBreaker] = []

        class Killer(Source):
            def measures(self) -> Any:
                if armed and dying:
                    dying.clear()
                    gc.collect()
                return ()

        armed: list[bool] = []  # not when it is included: it is asked for its metrics then
        killers = [Killer("killer")]
        include(killers[0])
        keep = CircuitBreaker("survivor")
        work(keep, 1)
        for _ in range(3):
            dying.append(CircuitBreaker("survivor"))
            work(dying[0], 100)
            killers.append(Killer("killer"))
            include(killers[-1])  # one that comes before it, and one that comes after it
            armed.append(True)
            values(reader)
            armed.clear()

        gc.collect()
        found = [values(reader, "survivor")["calls success"] for _ in range(3)]
        assert found == [301] * 3
        assert values(reader, "survivor")["call.duration success"] == 301

    def test_one_that_dies_as_the_reading_begins(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """When it is known who is there, and nobody has been asked yet: in another thread, say."""
        reader, keep, dying = Reader(), CircuitBreaker("early death"), [CircuitBreaker("early death")]
        work(keep, 1)
        work(dying[0], 100)

        def counted() -> float:
            values, attributes = reader.read(HEARD).columns[CALLS]
            return sum(
                value
                for value, one in zip(values, attributes, strict=True)
                if (one["resilient.policy.name"], one["resilient.outcome"]) == ("early death", "success")
            )

        def all_of_which_one_dies() -> list[Any]:
            places = living.all_living()
            dying.clear()
            gc.collect()
            return places

        assert counted() == 101
        monkeypatch.setattr("resilient.telemetry.reading.all_living", all_of_which_one_dies)
        assert [counted() for _ in range(3)] == [101] * 3

    def test_nothing_is_kept_alive(self, reader: InMemoryMetricReader) -> None:
        """Not by being collected, and not by being excluded."""
        breaker, excluded = CircuitBreaker("b"), CircuitBreaker("e")
        values(reader)
        exclude(excluded)
        values(reader)
        gone = [weakref.ref(breaker), weakref.ref(excluded)]
        del breaker, excluded
        gc.collect()

        assert [one() for one in gone] == [None, None]

    def test_counters_of_the_living_survive_many_that_are_gone(self) -> None:
        """Of those that are gone the latest names are kept, and those of the living for ever."""
        reader = Reader()
        keep, shared = CircuitBreaker("alive"), CircuitBreaker("alive")
        work(keep, 1)
        work(shared, 100)
        reader.read(HEARD)
        del shared
        gc.collect()
        for _ in range(3):
            many = [Bulkhead(f"gone {number}", 1) for number in range(300)]
            reader.read(HEARD)
            del many
            gc.collect()
        columns = reader.read(HEARD).columns[CALLS]

        alive = {
            attributes["resilient.outcome"]: value
            for value, attributes in zip(*columns, strict=True)
            if attributes["resilient.policy.name"] == "alive"
        }
        assert alive["success"] == 101
        # Beside them, names that somebody has who lives: those of other tests, say.
        assert len(reader._departed) <= _MOST_DEPARTED + len(set(reader._names.values()))
        assert not [name for _, name in reader._names.values() if name.startswith("gone")]

    def test_what_lives_is_found_once_and_forgotten_when_it_is_gone(self) -> None:
        """Thousands of policies that were made and dropped leave nothing."""
        before = len(living._places)
        for number in range(3_000):
            Bulkhead(f"b{number % 7}", 1)

        assert len(living._places) < 2 * before + 200
        bulkhead = Bulkhead("once", 1)
        living.remember(bulkhead)
        assert [place() for place in living.all_living()].count(bulkhead) == 1

    def test_exclude_and_include(self, reader: InMemoryMetricReader) -> None:
        """Nothing of it is told in between; counters and distributions go on where they stood."""
        breaker = CircuitBreaker("switched")
        work(breaker, 10)
        before = values(reader, "switched")
        exclude(breaker)
        work(breaker, 5)
        assert values(reader, "switched").keys() <= {"call.duration success"}  # the SDK's own
        include(breaker)
        include(breaker)
        after = values(reader, "switched")

        assert (before["calls success"], after["calls success"]) == (10, 15)
        assert (before["call.duration success"], after["call.duration success"]) == (10, 15)
        assert after.keys() == before.keys()


@dataclass
class Unhashable:
    """As plain dataclasses are."""

    kind = "Unhashable"
    name: str = "same"

    def measures(self) -> list[Any]:
        return [(CALLS, 1, ("success",))]


@dataclass(frozen=True)
class Equal:
    """One that is equal to another one."""

    kind = "Equal"
    name: str = "same"
    told: tuple[Any, ...] = field(default=((CALLS, 1, ("success",)),))

    def measures(self) -> Iterable[Any]:
        return self.told


class Unreferable:
    """One that cannot be referred to weakly."""

    __slots__ = ()
    kind = "Unreferable"
    name = "unreferable"

    def measures(self) -> list[Any]:
        return []


NONSENSE: tuple[tuple[str, Any], ...] = (
    ("raises", RuntimeError),
    ("none", None),
    ("number", 3),
    ("two parts", [(CALLS, 1)]),
    ("four parts", [(CALLS, 1, ("success",), 1)]),
    ("no labels", [(CALLS, 1, ())]),
    ("too many labels", [(CALLS, 1, ("success", "failure"))]),
    ("labels in a list", [(CALLS, 1, ["success"])]),
    ("labels that are no text", [(CALLS, 1, (object(),))]),
    ("text for a number", [(CALLS, "many", ("success",))]),
    ("None for a number", [(CALLS, None, ("success",))]),
    ("number for a distribution", [(WAIT_DURATION, 1.0, ())]),
    ("distribution for a number", [(CALLS, Recorder(FakeClock()).histogram(), ("success",))]),
    ("name for a metric", [("resilient.calls", 1, ("success",))]),
)


NO_TEXT = [None, 3, ["list"], object()]


class TestSourcesOfOthers:
    @pytest.mark.parametrize("nonsense", [one for _, one in NONSENSE], ids=[name for name, _ in NONSENSE])
    def test_nonsense_of_one_is_told_once_and_spoils_nothing(
        self, nonsense: Any, reader: InMemoryMetricReader, caplog: pytest.LogCaptureFixture
    ) -> None:
        """All others are told as ever, and it is, too, once it makes sense."""
        breaker, source = CircuitBreaker("beside"), Source("odd", nonsense)
        work(breaker, 2)
        with caplog.at_level(logging.ERROR, "resilient"):
            include(source)
            found = [values(reader, "beside")["calls success"] for _ in range(5)]
        assert found == [2] * 5
        assert values(reader, "odd") == {}
        assert 1 <= len([one for one in caplog.records if "Source object" in one.getMessage()]) <= 2
        source.told = [(CALLS, 7, ("success",))]

        assert values(reader, "odd") == {"calls success": 7}

    @pytest.mark.parametrize("nonsense", NO_TEXT, ids=["none", "number", "list", "object"])
    @pytest.mark.parametrize("which", ["kind", "name"])
    def test_kinds_and_names_that_are_none_are_refused(
        self, which: str, nonsense: Any, reader: InMemoryMetricReader
    ) -> None:
        """Or left out, if they become nonsense later: they spoil nothing."""
        breaker = CircuitBreaker("beside")
        source, later = (Source("odd", [(CALLS, 1, ("success",))]) for _ in range(2))
        include(later)
        for one in (source, later):
            setattr(one, which, nonsense)
        with pytest.raises(TypeError, match="sources must have "):
            include(source)
        work(breaker, 1)

        assert values(reader, "beside")["calls success"] == 1

    @pytest.mark.parametrize("cls", [Unhashable, Equal])
    def test_are_told_apart_by_identity(self, cls: Any, reader: InMemoryMetricReader) -> None:
        """Those that are equal, or have no hash, count as well."""
        sources = [cls(), cls(), cls()]
        include(*sources)
        assert values(reader, "same") == {"calls success": 3}
        exclude(sources[1])

        assert values(reader, "same") == {"calls success": 2}

    @pytest.mark.parametrize("nonsense", [None, 3, "policy", object(), Unreferable()], ids=type)
    def test_what_has_no_measures_is_refused(self, nonsense: Any) -> None:
        """By name, with what it must have."""
        with pytest.raises(TypeError, match=r"sources must .*got "):
            include(nonsense)
        if not isinstance(nonsense, Unreferable):
            with pytest.raises(TypeError, match=r"sources must have kind, name and measures\(\), got "):
                exclude(nonsense)

    def test_metric_of_their_own(self, reader: InMemoryMetricReader) -> None:
        """One that is defined when it is first measured is told from the first collection on."""
        from resilient.telemetry import counter

        made: list[Any] = []

        class Late(Source):
            def measures(self) -> Any:
                if not made:
                    made.append(counter("shop.late", "{order}", "Orders.", "shop.country"))
                return [(made[0], 5, ("fr",)), (made[0], 6, ("de",))]

        source = Late("late")
        include(source)

        assert values(reader, "late") == {"shop.late fr": 5, "shop.late de": 6}


def test_attributes_are_bounded() -> None:
    """A name that comes and goes does not stay for ever."""
    from resilient.telemetry import reading

    assert reading._attributes.cache_info().maxsize is not None
    assert reading._snake.cache_info().maxsize is not None
