"""What pybreaker promises, kept by `resilient.CircuitBreaker`: the same tests for both.

What differs on purpose is tested against ours alone, at the end.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import fakeredis
import pybreaker
import pytest

from resilient import CircuitBreaker, CircuitOpenError
from resilient.testing import FakeClock

Factory = Callable[..., pybreaker.CircuitBreaker]

# Short enough to wait for, long enough to see: pybreaker's clock cannot be set.
RESET = 0.05


class DependencyError(Exception):
    """A failure."""


class BusinessError(Exception):
    """Excluded."""


def make_ours(**settings: Any) -> CircuitBreaker:
    """Make one of ours with pybreaker's words and defaults."""
    defaults: dict[str, Any] = {"fail_max": 5, "reset_timeout": 60, "throw_new_error_on_trip": True}
    return CircuitBreaker(**{**defaults, **settings})


@pytest.fixture(params=[pybreaker.CircuitBreaker, make_ours], ids=["pybreaker", "resilient"])
def make(request: pytest.FixtureRequest) -> Factory:
    """Make a breaker: theirs, and then ours."""
    return request.param


def good(value: object = "fine") -> object:
    """Succeed."""
    return value


def bad(*args: object) -> object:
    """Fail."""
    raise DependencyError(*args)


def call_badly(breaker: pybreaker.CircuitBreaker, times: int = 1) -> None:
    """Make calls that fail."""
    for _ in range(times):
        with pytest.raises((DependencyError, pybreaker.CircuitBreakerError)):
            breaker.call(bad)


class Notes(pybreaker.CircuitBreakerListener):
    """A listener that writes down what it is told."""

    def __init__(self, label: str = "", book: list[tuple[Any, ...]] | None = None) -> None:
        self.label = label
        self.book: list[tuple[Any, ...]] = [] if book is None else book

    def _note(self, *what: object) -> None:
        self.book.append((self.label, *what) if self.label else what)

    def before_call(self, cb: Any, func: Any, *args: Any, **kwargs: Any) -> None:
        self._note("before_call", func, args, kwargs)

    def success(self, cb: Any) -> None:
        self._note("success")

    def failure(self, cb: Any, exc: BaseException) -> None:
        self._note("failure", type(exc))

    def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:
        self._note("state_change", old_state.name, new_state.name)


class TestConsecutiveRule:
    """fail_max failures in a row."""

    def test_call_passes_arguments_and_result(self, make):
        """Keywords too."""
        breaker = make()
        assert breaker.call(good, "a") == "a"
        assert breaker.call(good, value="b") == "b"

    def test_call_raises_what_the_function_raises(self, make):
        """As long as it does not trip."""
        with pytest.raises(DependencyError, match="why"):
            make().call(bad, "why")

    def test_failures_in_a_row_are_counted(self, make):
        """One by one, and a success starts anew."""
        breaker = make(fail_max=3)
        counters = []
        for fn in (bad, bad, good, bad):
            if fn is bad:
                call_badly(breaker)
            else:
                breaker.call(fn)
            counters.append(breaker.fail_counter)

        assert counters == [1, 2, 0, 1]
        assert breaker.current_state == pybreaker.STATE_CLOSED

    def test_fail_max_failures_open_it(self, make):
        """And the tripping call gets a CircuitBreakerError."""
        breaker = make(fail_max=3)
        call_badly(breaker, 2)
        with pytest.raises(pybreaker.CircuitBreakerError):
            breaker.call(bad)

        assert breaker.current_state == pybreaker.STATE_OPEN
        assert breaker.fail_counter == 3

    def test_tripping_call_keeps_its_exception_if_wished(self, make):
        """throw_new_error_on_trip=False."""
        breaker = make(fail_max=1, throw_new_error_on_trip=False)
        with pytest.raises(DependencyError):
            breaker.call(bad)

        assert breaker.current_state == pybreaker.STATE_OPEN

    def test_open_refuses_without_calling(self, make):
        """With a CircuitBreakerError."""
        breaker, called = make(), []
        breaker.open()
        with pytest.raises(pybreaker.CircuitBreakerError):
            breaker.call(called.append, 1)

        assert not called


class TestHalfOpen:
    """After reset_timeout."""

    def test_good_call_closes_it(self, make):
        """The first one, by default."""
        breaker = make(fail_max=1, reset_timeout=RESET)
        call_badly(breaker)
        time.sleep(RESET)

        assert breaker.call(good) == "fine"
        assert breaker.current_state == pybreaker.STATE_CLOSED
        assert breaker.fail_counter == 0

    def test_bad_call_opens_it_again(self, make):
        """At once, whatever fail_max says, and for another reset_timeout."""
        breaker = make(fail_max=3, reset_timeout=RESET)
        call_badly(breaker, 3)
        time.sleep(RESET)
        with pytest.raises(pybreaker.CircuitBreakerError):
            breaker.call(bad)

        assert breaker.current_state == pybreaker.STATE_OPEN
        with pytest.raises(pybreaker.CircuitBreakerError):
            breaker.call(good)

    def test_success_threshold_good_calls_close_it(self, make):
        """Counted by success_counter, and forgotten when one goes wrong."""
        breaker = make(fail_max=1, reset_timeout=RESET, success_threshold=3)
        breaker.half_open()
        breaker.call(good)
        breaker.call(good)
        assert (breaker.current_state, breaker.success_counter) == (pybreaker.STATE_HALF_OPEN, 2)
        call_badly(breaker)
        assert breaker.success_counter == 0
        time.sleep(RESET)
        for _ in range(3):
            breaker.call(good)

        assert breaker.current_state == pybreaker.STATE_CLOSED

    def test_by_hand(self, make):
        """open(), half_open() and close() do what they say."""
        breaker = make()
        assert breaker.open() is True
        assert breaker.current_state == pybreaker.STATE_OPEN
        breaker.half_open()
        assert breaker.current_state == pybreaker.STATE_HALF_OPEN
        breaker.close()
        assert breaker.current_state == pybreaker.STATE_CLOSED

    def test_open_answers_whether_an_error_is_to_be_thrown(self, make):
        """pybreaker's own states ask."""
        assert make(throw_new_error_on_trip=False).open() is False


class TestExclusion:
    """What is no system error."""

    @pytest.mark.parametrize(
        "exclude",
        [
            [BusinessError],
            [LookupError, BusinessError],
            [lambda exc: isinstance(exc, BusinessError)],
            [LookupError, lambda exc: exc.args == ("no such order",)],
        ],
    )
    def test_excluded_exceptions_never_open_it(self, make, exclude):
        """By type and by predicate."""
        breaker = make(fail_max=1, exclude=exclude)
        for _ in range(3):
            with pytest.raises(BusinessError), breaker.calling():
                raise BusinessError("no such order")
        assert breaker.current_state == pybreaker.STATE_CLOSED
        assert breaker.fail_counter == 0

        call_badly(breaker)
        assert breaker.current_state == pybreaker.STATE_OPEN

    def test_subclasses_are_excluded_too(self, make):
        """As everywhere."""

        class StillBusinessError(BusinessError):
            pass

        breaker = make(fail_max=1, exclude=[BusinessError])
        assert breaker.is_system_error(DependencyError()) is True
        assert breaker.is_system_error(BusinessError()) is False
        assert breaker.is_system_error(StillBusinessError()) is False

    def test_exclusions_can_be_added_and_removed(self, make):
        """And are shown in order."""
        breaker = make(exclude=[LookupError])
        breaker.add_excluded_exception(BusinessError)
        breaker.add_excluded_exceptions(KeyError, OSError)
        assert breaker.excluded_exceptions == (LookupError, BusinessError, KeyError, OSError)
        breaker.remove_excluded_exception(BusinessError)
        assert breaker.excluded_exceptions == (LookupError, KeyError, OSError)

        assert breaker.is_system_error(BusinessError()) is True
        with pytest.raises(ValueError, match=r"not in list|x not in list"):
            breaker.remove_excluded_exception(BusinessError)

    def test_predicates_and_types_are_shown_as_given(self, make):
        """In the order in which they came."""

        def predicate(exc: object) -> bool:
            return False

        assert make(exclude=[predicate, LookupError]).excluded_exceptions == (predicate, LookupError)


class TestListeners:
    """Who hears what, and in which order."""

    def test_good_call(self, make):
        """Before it, with function and arguments, and after it."""
        notes = Notes()
        make(listeners=[notes]).call(good, value="x")

        assert notes.book == [("before_call", good, (), {"value": "x"}), ("success",)]

    def test_good_call_of_a_decorated_function(self, make):
        """The function is the one that was decorated."""
        notes = Notes()
        make(listeners=[notes])(good)("x")

        assert notes.book == [("before_call", good, ("x",), {}), ("success",)]

    def test_trip(self, make):
        """The failure first, then the change."""
        notes = Notes()
        call_badly(make(fail_max=1, listeners=[notes]))

        assert notes.book[1:] == [("failure", DependencyError), ("state_change", "closed", "open")]

    def test_recovery(self, make):
        """The change to half-open before the call, the one to closed before its success."""
        notes = Notes()
        breaker = make(fail_max=1, reset_timeout=RESET, listeners=[notes])
        call_badly(breaker)
        time.sleep(RESET)
        del notes.book[:]
        breaker.call(good)

        assert notes.book == [
            ("state_change", "open", "half-open"),
            ("before_call", good, (), {}),
            ("state_change", "half-open", "closed"),
            ("success",),
        ]

    def test_refused_call_is_not_heard_of(self, make):
        """There was no call."""
        notes = Notes()
        breaker = make()
        breaker.open()
        breaker.add_listener(notes)
        with pytest.raises(pybreaker.CircuitBreakerError):
            breaker.call(good)

        assert not notes.book

    def test_several_in_order(self, make):
        """Each hears each thing before the next thing happens."""
        book: list[tuple[Any, ...]] = []
        breaker = make(listeners=[Notes("first", book)])
        breaker.add_listeners(Notes("second", book), Notes("third", book))
        breaker.call(good)

        assert [entry[:2] for entry in book] == [
            (label, what) for what in ("before_call", "success") for label in ("first", "second", "third")
        ]

    def test_added_removed_and_shown(self, make):
        """As a tuple."""
        first, second = Notes(), Notes()
        breaker = make(listeners=[first])
        breaker.add_listener(second)
        assert breaker.listeners == (first, second)
        breaker.remove_listener(first)
        assert breaker.listeners == (second,)
        breaker.call(good)

        assert not first.book
        with pytest.raises(ValueError, match=r"not in list|x not in list"):
            breaker.remove_listener(first)

    def test_states_are_pybreakers_objects(self, make):
        """With names and types, bound to the breaker."""
        seen: list[Any] = []

        class Keeper(pybreaker.CircuitBreakerListener):
            def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:
                seen.append((cb, old_state, new_state))

        breaker = make(listeners=[Keeper()])
        breaker.open()
        breaker.half_open()
        breaker.close()

        kinds = [(type(old), type(new)) for _, old, new in seen]
        opened, half, closed = (
            pybreaker.CircuitOpenState,
            pybreaker.CircuitHalfOpenState,
            pybreaker.CircuitClosedState,
        )
        assert kinds == [(closed, opened), (opened, half), (half, closed)]
        assert all(cb is breaker for cb, _, _ in seen)


class TestForms:
    """Ways to guard something."""

    def test_decorator_without_parentheses(self, make):
        """Keeps the function's name."""

        @make(fail_max=1)
        def fetch(value: int) -> int:
            """Fetch."""
            return value * 2

        assert fetch(2) == 4
        assert (fetch.__name__, fetch.__doc__) == ("fetch", "Fetch.")

    def test_decorator_with_parentheses(self, make):
        """The same."""

        @make(fail_max=1)()
        def fetch(value: int) -> int:
            return value * 2

        assert fetch(2) == 4

    def test_decorated_functions_share_the_state(self, make):
        """One breaker per dependency, not per function."""
        breaker = make(fail_max=2)
        first, second = breaker(bad), breaker(bad)
        with pytest.raises(DependencyError):
            first()
        with pytest.raises(pybreaker.CircuitBreakerError):
            second()

        assert breaker.current_state == pybreaker.STATE_OPEN

    def test_decorated_method(self, make):
        """Bound to its instance."""
        breaker = make()

        class Client:
            def __init__(self, value: int) -> None:
                self.value = value

            @breaker
            def fetch(self, factor: int) -> int:
                return self.value * factor

        assert Client(3).fetch(2) == 6

    def test_calling_guards_a_block(self, make):
        """Its failures count, and when open, it is not entered."""
        breaker = make(fail_max=2)
        with breaker.calling():
            pass
        with pytest.raises(DependencyError), breaker.calling():
            raise DependencyError
        assert breaker.fail_counter == 1
        with pytest.raises(pybreaker.CircuitBreakerError), breaker.calling():
            raise DependencyError
        entered = []
        with pytest.raises(pybreaker.CircuitBreakerError), breaker.calling():
            entered.append(1)

        assert not entered

    def test_generator_counts_when_it_ends(self, make):
        """A success when exhausted, a failure when it raises."""
        breaker = make(fail_max=3)

        @breaker
        def stream(fail: bool) -> Iterator[int]:
            yield 1
            if fail:
                raise DependencyError
            yield 2

        with pytest.raises(DependencyError):
            list(stream(fail=True))
        assert breaker.fail_counter == 1
        assert list(stream(fail=False)) == [1, 2]
        assert breaker.fail_counter == 0

    def test_generator_takes_what_is_sent(self, make):
        """Values go both ways."""

        @make()
        def echo() -> Iterator[Any]:
            heard = yield "begin"
            while heard:
                heard = yield heard

        stream = echo()
        assert next(stream) == "begin"
        assert stream.send("a") == "a"


class TestAttributes:
    """What can be read and set."""

    def test_constructor_words(self, make):
        """Shown as given."""
        breaker = make(fail_max=7, reset_timeout=11, success_threshold=2, name="rates")

        assert (breaker.fail_max, breaker.reset_timeout) == (7, 11)
        assert (breaker.success_threshold, breaker.name) == (2, "rates")
        assert breaker.listeners == ()
        assert breaker.excluded_exceptions == ()
        assert (breaker.fail_counter, breaker.success_counter) == (0, 0)

    def test_fail_max_can_be_set(self, make):
        """It holds from the next failure on."""
        breaker = make(fail_max=2)
        breaker.fail_max = 4
        call_badly(breaker, 3)
        assert breaker.current_state == pybreaker.STATE_CLOSED
        call_badly(breaker)
        assert breaker.current_state == pybreaker.STATE_OPEN

    def test_reset_timeout_can_be_set(self, make):
        """It holds from the next opening on."""
        breaker = make(fail_max=1)
        breaker.reset_timeout = RESET
        call_badly(breaker)
        time.sleep(RESET)

        assert breaker.call(good) == "fine"

    def test_success_threshold_can_be_set(self, make):
        """It holds from the next probe on."""
        breaker = make()
        breaker.success_threshold = 2
        breaker.half_open()
        breaker.call(good)
        assert breaker.current_state == pybreaker.STATE_HALF_OPEN
        breaker.call(good)
        assert breaker.current_state == pybreaker.STATE_CLOSED

    def test_name_can_be_set(self, make):
        """For the logs."""
        breaker = make(name="a")
        breaker.name = "b"
        assert breaker.name == "b"

    def test_state_is_pybreakers_object(self, make):
        """Of the right class, with the right name."""
        breaker = make()
        assert isinstance(breaker.state, pybreaker.CircuitClosedState)
        breaker.open()
        assert isinstance(breaker.state, pybreaker.CircuitOpenState)
        breaker.half_open()
        assert isinstance(breaker.state, pybreaker.CircuitHalfOpenState)
        assert breaker.state.name == breaker.current_state == pybreaker.STATE_HALF_OPEN

    def test_unknown_state_is_refused(self, make):
        """With the ones there are."""
        with pytest.raises(ValueError, match="closed, open, half-open"):
            make().state = "ajar"


@pytest.fixture(params=["memory", "fakeredis", "valkey"])
def new_storage(request: pytest.FixtureRequest) -> Iterator[Callable[[], pybreaker.CircuitBreakerStorage]]:
    """Make storages of one kind that, if they are servers, are views of the same data."""
    if request.param == "memory":
        storage = pybreaker.CircuitMemoryStorage(pybreaker.STATE_CLOSED)
        yield lambda: storage
        return
    server = (
        fakeredis.FakeServer() if request.param == "fakeredis" else request.getfixturevalue("shared_valkey")
    )
    namespace = f"contract-{request.node.name}"
    with client_of(server) as client:
        yield lambda: pybreaker.CircuitRedisStorage(pybreaker.STATE_CLOSED, client, namespace)


def client_of(server: Any) -> Any:
    """Return a client of a server, imitated or real."""
    return fakeredis.FakeRedis(server=server) if isinstance(server, fakeredis.FakeServer) else server.client()


def eventually(look: Callable[[], Any], expected: Any, within: float = 5.0) -> None:
    """Wait until *look* returns *expected*: ours writes to servers behind the calls' back."""
    give_up_at = time.monotonic() + within
    while look() != expected and time.monotonic() < give_up_at:
        time.sleep(0.005)
    assert look() == expected


class TestStorages:
    """Memory, Redis, and a real server."""

    def test_failures_are_counted_in_it(self, make, new_storage):
        """And zeroed by a success."""
        storage = new_storage()
        breaker = make(state_storage=storage)
        call_badly(breaker, 3)
        eventually(lambda: storage.counter, 3)
        breaker.call(good)
        eventually(lambda: storage.counter, 0)

    def test_state_and_time_of_opening_are_in_it(self, make, new_storage):
        """For others to see."""
        storage = new_storage()
        breaker = make(fail_max=1, state_storage=storage)
        before = time.time()
        call_badly(breaker)
        eventually(lambda: storage.state, "open")

        assert storage.opened_at is not None
        assert int(before) <= storage.opened_at.timestamp() <= time.time()
        breaker.half_open()
        eventually(lambda: storage.state, "half-open")
        breaker.close()
        eventually(lambda: storage.state, "closed")

    def test_good_probes_are_counted_in_it(self, make, new_storage):
        """Until they close it."""
        storage = new_storage()
        breaker = make(success_threshold=3, state_storage=storage)
        breaker.half_open()
        breaker.call(good)
        breaker.call(good)
        eventually(lambda: storage.success_counter, 2)
        breaker.call(good)
        eventually(lambda: (storage.state, storage.success_counter), ("closed", 0))

    def test_second_breaker_begins_in_the_state_it_holds(self, make, new_storage):
        """A restart does not close a circuit."""
        storage = new_storage()
        breaker = make(fail_max=1, state_storage=storage)
        call_badly(breaker)
        eventually(lambda: storage.state, "open")

        second = make(fail_max=1, state_storage=new_storage())
        eventually(lambda: second.current_state, "open")
        with pytest.raises(pybreaker.CircuitBreakerError):
            second.call(good)

    def test_half_open_is_begun_in_too(self, make, new_storage):
        """One good call closes it."""
        storage = new_storage()
        make(state_storage=storage).half_open()
        eventually(lambda: storage.state, "half-open")

        second = make(state_storage=new_storage())
        eventually(lambda: second.current_state, "half-open")
        second.call(good)
        eventually(lambda: storage.state, "closed")

    def test_open_since_nobody_knows_when_ends_with_the_first_call(self, make, new_storage):
        """Such as one that was made in that state."""
        storage = new_storage()
        storage.state = "open"
        breaker = make(state_storage=storage)
        eventually(lambda: breaker.current_state, "open")

        assert breaker.call(good) == "fine"
        eventually(lambda: storage.state, "closed")


class TestDifferences:
    """What is not as in pybreaker, on purpose."""

    def test_calls_run_at_the_same_time(self):
        """pybreaker holds a lock while the guarded function runs."""
        breaker = make_ours()
        together = threading.Barrier(4, timeout=10)
        threads = [threading.Thread(target=breaker.call, args=(together.wait,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert breaker.stats().calls == 4

    def test_excluded_exceptions_do_not_start_the_count_anew(self):
        """In pybreaker they are successes."""
        breaker = make_ours(fail_max=2, exclude=[BusinessError])
        call_badly(breaker)
        with pytest.raises(BusinessError), breaker.calling():
            raise BusinessError

        assert breaker.fail_counter == 1

    def test_excluded_exceptions_close_nothing(self):
        """Nor do listeners hear of them; in pybreaker they close a half-open circuit."""
        notes = Notes()
        breaker = make_ours(exclude=[BusinessError], listeners=[notes])
        breaker.half_open()
        with pytest.raises(BusinessError), breaker.calling():
            raise BusinessError

        assert breaker.current_state == "half-open"
        assert "success" not in [entry[0] for entry in notes.book]

    def test_listener_sees_the_state_committed(self):
        """In pybreaker it runs before the storage is written."""
        seen = []
        storage = pybreaker.CircuitMemoryStorage("closed")

        class Looks(pybreaker.CircuitBreakerListener):
            def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:
                seen.append(cb.current_state)

        make_ours(listeners=[Looks()], state_storage=storage).open()
        assert seen == ["open"]

    def test_listener_that_raises_breaks_nothing(self, caplog):
        """In pybreaker its exception comes out of the guarded call. It is logged once."""

        class Faulty(Notes):
            def before_call(self, cb: Any, func: Any, *args: Any, **kwargs: Any) -> None:
                raise RuntimeError("listener")

        faulty, other = Faulty(), Notes()
        breaker = make_ours(listeners=[faulty, other])
        for _ in range(3):
            assert breaker.call(good) == "fine"

        assert len(other.book) == 6
        assert len(faulty.book) == 3
        assert caplog.text.count("Traceback") == 1

    def test_interrupts_come_out_as_they_are_and_count_as_nothing(self):
        """pybreaker counts them, and replaces the tripping one."""
        breaker = make_ours(fail_max=1)
        with pytest.raises(KeyboardInterrupt), breaker.calling():
            raise KeyboardInterrupt

        assert breaker.current_state == "closed"

    def test_closing_a_generator_early_is_no_failure(self):
        """In pybreaker it is; and its return value is lost there."""
        breaker = make_ours(fail_max=1)

        @breaker
        def stream() -> Iterator[int]:
            yield 1
            return "result"

        early = stream()
        next(early)
        early.close()
        assert breaker.current_state == "closed"

        def outer() -> Iterator[int]:
            assert (yield from stream()) == "result"

        assert list(outer()) == [1]

    def test_coroutine_counts_by_its_end(self):
        """In pybreaker it is a success when it is made."""
        breaker = make_ours(fail_max=1)

        @breaker
        async def fetch() -> None:
            raise DependencyError

        with pytest.raises(CircuitOpenError):
            fetch().send(None)
        assert breaker.current_state == "open"

    def test_state_can_be_set_by_name(self):
        """pybreaker changes the object it shows, and goes on by what the storage says."""
        breaker = make_ours()
        for state in ("open", "half-open", "closed"):
            breaker.state = state
            assert breaker.current_state == breaker.state.name == state

    async def test_call_async_awaits_without_tornado(self):
        """pybreaker's needs it."""
        breaker = make_ours()

        async def fetch(value: int) -> int:
            return value

        assert await breaker.call_async(fetch, 5) == 5
        with pytest.raises(TypeError, match="unknown options: nonsense"):
            breaker(nonsense=True)
        assert breaker(__pybreaker_call_async=True) is breaker

    @pytest.mark.parametrize(
        ("attribute", "value", "error"),
        [
            ("fail_max", 0, ValueError),
            ("fail_max", "5", TypeError),
            ("fail_max", None, ValueError),
            ("reset_timeout", -1, ValueError),
            ("reset_timeout", None, TypeError),
            ("success_threshold", 0, ValueError),
            ("name", "", ValueError),
            ("name", None, TypeError),
        ],
    )
    def test_setters_check_what_they_are_given(self, attribute, value, error):
        """And leave all as it was. pybreaker takes anything."""
        breaker = make_ours(fail_max=3, name="rates")
        before = breaker.rules
        with pytest.raises(error, match=f"^(failure_ratio|{attribute}) must"):
            setattr(breaker, attribute, value)

        assert breaker.rules == before
        assert breaker.name == "rates"

    def test_time_is_monotonic_and_can_be_set(self):
        """pybreaker asks the wall clock."""
        clock = FakeClock()
        breaker = make_ours(fail_max=1, reset_timeout=3600, clock=clock)
        call_badly(breaker)
        clock.advance(3600)

        assert breaker.call(good) == "fine"
