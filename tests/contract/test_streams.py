"""A guarded generator is a generator in every respect: sends, throws, results, closes."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any

import pytest
from tests.contract.forms import Driver
from tests.contract.policies import Mode, UnrelatedError, each_mode, evidence, left_behind, takers_of_streams

from resilient import CircuitBreaker, Fallback, Pipeline, Retry, Timeout, time_left
from resilient.engine.policy import Policy
from resilient.errors import CircuitOpenError
from resilient.testing import FakeClock

Begin = Callable[[Policy], "Remote"]

on_every_mode = each_mode(takers_of_streams())


class Diary:
    """What a generator lived through."""

    def __init__(self) -> None:
        self.entries: list[object] = []

    def echo(self) -> Generator[Any, Any, str]:
        """Yield what is sent in; answer UnrelatedError with an item; end on `"end"`."""
        item: object = "ready"
        try:
            while item != "end":
                try:
                    item = yield item
                except UnrelatedError as exc:
                    self.entries.append(exc)
                    item = "caught"
            return "returned"
        finally:
            self.entries.append("closed")

    async def aecho(self) -> AsyncGenerator[Any, Any]:
        """Do the same asynchronously, without a value to return."""
        item: object = "ready"
        try:
            while item != "end":
                try:
                    item = yield item
                except UnrelatedError as exc:
                    self.entries.append(exc)
                    item = "caught"
        finally:
            self.entries.append("closed")


class Remote:
    """One way to drive both kinds of generator."""

    def __init__(self, stream: Any, drive: Driver) -> None:
        self._stream = stream
        self._drive = drive
        self._is_async = hasattr(stream, "asend")

    def send(self, value: object) -> Any:
        return self._step("send", value)

    def throw(self, exc: BaseException) -> Any:
        return self._step("throw", exc)

    def close(self) -> None:
        self._step("close")

    def _step(self, verb: str, *args: object) -> Any:
        if not self._is_async:
            return getattr(self._stream, verb)(*args)
        return self._drive.wait_for(getattr(self._stream, f"a{verb}")(*args))


@pytest.fixture(params=["generator", "async generator"])
def source(request: pytest.FixtureRequest) -> Callable[[Diary], Any]:
    """The generator function of either kind."""
    return Diary.echo if request.param == "generator" else Diary.aecho


@pytest.fixture
def diary() -> Diary:
    """A new diary."""
    return Diary()


@pytest.fixture
def begin(source: Callable[[Diary], Any], diary: Diary, drive: Driver) -> Begin:
    """Begin a stream of either kind under a policy."""
    return lambda policy: Remote(policy(source)(diary), drive)


@on_every_mode
def test_sent_values_and_items_get_through(mode: Mode, begin: Begin, diary: Diary, clock: FakeClock) -> None:
    """`send` reaches the generator, also at the first item and through falsy values."""
    policy = mode.make(clock)
    stream = begin(policy)

    assert [stream.send(value) for value in (None, "a", 0, None, "b")] == ["ready", "a", 0, None, "b"]

    stream.close()
    assert diary.entries == ["closed"]
    assert not left_behind(policy)


@on_every_mode
def test_exception_thrown_in_reaches_the_generator(
    mode: Mode, begin: Begin, diary: Diary, clock: FakeClock
) -> None:
    """A handled one is answered with an item, at any item, and is no failure of the call."""
    policy, thrown = mode.make(clock), [UnrelatedError(), UnrelatedError()]
    stream = begin(policy)

    stream.send(None)
    assert [stream.throw(exc) for exc in thrown] == ["caught", "caught"]
    assert stream.send("still alive") == "still alive"
    with pytest.raises((StopIteration, StopAsyncIteration)):
        stream.send("end")

    assert [a is b for a, b in zip(diary.entries, thrown, strict=False)] == [True, True]
    assert not {what for what, count in evidence(policy).items() if count and "failure" in what}


@on_every_mode
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_unhandled_exception_thrown_in_comes_back_itself(
    mode: Mode, error: type[BaseException], begin: Begin, diary: Diary, clock: FakeClock
) -> None:
    """The generator is finished then, and gives its place back."""
    policy, thrown = mode.make(clock), error()
    stream = begin(policy)

    stream.send(None)
    with pytest.raises(error) as caught:
        stream.throw(thrown)

    assert caught.value is thrown
    assert diary.entries == ["closed"]
    assert not left_behind(policy)
    with pytest.raises((StopIteration, StopAsyncIteration)):
        stream.send(None)


@on_every_mode
@pytest.mark.parametrize("items_taken", [0, 1, 2])
def test_closing_early_closes_the_generator_and_counts_for_nothing(
    mode: Mode, items_taken: int, begin: Begin, diary: Diary, clock: FakeClock
) -> None:
    """A consumer that has seen enough says nothing about the source."""
    policy = mode.make(clock)
    stream = begin(policy)

    for _ in range(items_taken):
        stream.send(None)
    stream.close()
    stream.close()

    assert diary.entries == ["closed"] * (items_taken > 0)
    assert {what for what, n in evidence(policy).items() if n} <= {"Retry calls", "Timeout calls"}
    assert not left_behind(policy)


@on_every_mode
def test_return_value_of_a_generator_gets_through(mode: Mode, diary: Diary, clock: FakeClock) -> None:
    """`yield from` a guarded generator has its value, whether it ends by itself or by what is sent."""
    stream = mode.make(clock)(Diary.echo)(diary)

    next(stream)
    with pytest.raises(StopIteration) as stopped:
        stream.send("end")

    assert stopped.value.value == "returned"


@on_every_mode
def test_generator_without_items_returns_its_value(mode: Mode, clock: FakeClock) -> None:
    """Ending at the first step is a result, not a failure."""

    @mode.make(clock)
    def empty() -> Generator[Any, Any, str]:
        return "nothing"
        yield

    with pytest.raises(StopIteration) as stopped:
        next(empty())

    assert stopped.value.value == "nothing"


@on_every_mode
def test_generator_that_ignores_its_close_is_reported_as_python_does(mode: Mode, clock: FakeClock) -> None:
    """A generator that yields while it is closed is a bug of its author's, and stays visible."""

    @mode.make(clock)
    def stubborn() -> Generator[int, None, None]:
        with contextlib.suppress(GeneratorExit):
            yield 1
        yield 2

    stream = stubborn()
    next(stream)
    with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
        stream.close()


@on_every_mode
def test_guarded_generators_serve_as_context_managers(mode: Mode, clock: FakeClock, drive: Driver) -> None:
    """`contextlib` builds on the whole protocol; the block's exception comes out as it went in."""
    policy, error = mode.make(clock), UnrelatedError()

    @contextlib.contextmanager
    @policy
    def resource() -> Generator[str, None, None]:
        yield "resource"

    @contextlib.asynccontextmanager
    @policy
    async def aresource() -> AsyncGenerator[str, None]:
        yield "resource"

    def use() -> None:
        with resource() as held:
            assert held == "resource"
            raise error

    async def ause() -> None:
        async with aresource() as held:
            assert held == "resource"
            raise error

    with pytest.raises(UnrelatedError) as caught:
        use()
    assert caught.value is error
    with pytest.raises(UnrelatedError) as caught:
        drive.wait_for(ause())
    assert caught.value is error


@on_every_mode
def test_nothing_happens_before_the_first_step(
    mode: Mode, begin: Begin, diary: Diary, clock: FakeClock
) -> None:
    """Calling a generator function runs nothing: no admission, no count, no place taken."""
    policy = mode.make(clock)

    begin(policy)

    assert diary.entries == []
    assert not {what for what, count in evidence(policy).items() if count}
    assert not left_behind(policy)


@pytest.mark.parametrize("policy", [Timeout(30.0), Pipeline(Retry(on=OSError), Timeout(30.0))], ids=repr)
def test_deadline_of_a_stream_holds_inside_its_steps_only(policy: Any, drive: Driver) -> None:
    """The consumer between two steps is not bound by it, in either colour."""

    @policy
    def inside() -> Generator[float | None, None, None]:
        yield time_left()
        yield time_left()

    @policy
    async def ainside() -> AsyncGenerator[float | None, None]:
        yield time_left()
        yield time_left()

    async def consume() -> None:
        async for left in ainside():
            assert left is not None
            assert time_left() is None

    for left in inside():
        assert left is not None
        assert time_left() is None
    drive.wait_for(consume())


def test_stream_is_begun_anew_only_until_its_first_item(clock: FakeClock, drive: Driver) -> None:
    """After that a second run would repeat what the consumer has seen already."""
    runs: list[int] = []

    @Retry(on=OSError, attempts=3, sleep=clock.sleep)
    async def flaky() -> AsyncGenerator[int, None]:
        runs.append(len(runs))
        if len(runs) < 3:
            raise ConnectionError
        yield 1
        raise ConnectionError

    async def consume() -> list[int]:
        return [item async for item in flaky()]

    with pytest.raises(ConnectionError):
        drive.wait_for(consume())
    assert runs == [0, 1, 2]


def test_stream_is_replaced_only_until_its_first_item(clock: FakeClock) -> None:
    """A fallback in the middle would splice two streams together."""

    @Fallback(["instead"], on=OSError)
    def flaky(items: int) -> Generator[object, None, None]:
        yield from range(items)
        raise ConnectionError

    stream = flaky(1)

    assert list(flaky(0)) == ["instead"]
    assert next(stream) == 0
    with pytest.raises(ConnectionError):
        next(stream)


def test_consumer_of_a_probe_is_not_part_of_it(clock: FakeClock) -> None:
    """Between two items of a stream that is a probe, other calls do not pass as parts of the probe."""
    breaker = CircuitBreaker("b", probes=1, reset_timeout=1.0, clock=clock)

    @breaker
    def stream() -> Generator[int, None, None]:
        yield 1
        yield 2

    breaker.open()
    clock.advance(1.0)
    probe = stream()
    next(probe)

    assert breaker.current_state == "half-open"
    with pytest.raises(CircuitOpenError):
        breaker.call(int)
    assert list(probe) == [2]
    assert breaker.current_state == "closed"
