"""Wrappers of the policies that may know the answer already.

The fresh hit is inline: one dictionary read, one look at the clock, one bit, one increment, no lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
from collections.abc import Awaitable, Callable, Hashable, Iterator
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any, Final, Protocol

from ..clock import MONOTONIC
from ..deadline import innermost, time_left
from ..flight import Flight, Lead, Outcome, Serve, Step, Tie, current_flight
from ..shape import Shape, describe
from ..waiting import TaskWaiter, ThreadWaiter, Waiter
from ..workers import Job, Workers

__all__ = ["Lookup", "aload", "load", "lookup"]

_GLANCE: Final = 1.0  # seconds
_USED_UP: Final = (CoroutineType, GeneratorType, AsyncGeneratorType)


class Switch(Protocol):
    """Tells whether answers are looked up at all."""

    @property
    def enabled(self) -> bool: ...


class Lookup(Protocol):
    """Knows answers by key, and decides who finds out what it does not know."""

    @property
    def switch(self) -> Switch: ...

    plain_keys: bool
    clock: Callable[[], float]
    find: Callable[[Any], Any]
    hit_ticker: Any
    note: Callable[[Any], object]
    load_timeout: float | None
    refreshers: Workers
    refreshes: set[Any]

    def keys_for(self, fn: Any, /) -> Callable[[Any, Any], Hashable]: ...
    def bad_key(self, exc: TypeError, /) -> TypeError: ...
    def begin(self, key: Hashable, /) -> Step: ...
    def join(self, flight: Flight, waiter: Waiter, /) -> bool: ...
    def leave(self, flight: Flight, waiter: Waiter, /) -> None: ...
    def land(self, flight: Flight, value: Any, /) -> Any: ...
    def fail(self, flight: Flight, exc: Exception, /) -> Serve | None: ...
    def abandon(self, flight: Flight, /) -> None: ...
    def depart(self, flight: Flight, /) -> bool: ...
    def overdue(self, flight: Flight, waited: float | None, /) -> Serve: ...
    def too_slow(self, waited: float | None, /) -> Exception: ...
    def failure_of(self, flight: Flight, /) -> Exception: ...


def lookup(core: Lookup, fn: Callable[..., Any], shape: Shape) -> Callable[..., Any]:
    """Return *fn* with its answers looked up first.

    Raises:
        TypeError: *fn* is a generator function: a stream is no value that could be kept.
    """
    if shape is Shape.FUNCTION:
        return _function(core, fn)
    if shape is Shape.COROUTINE:
        return _coroutine(core, fn)
    msg = f"cannot cache {describe(fn)}, a {shape.value}: cache a function that returns the finished list"
    raise TypeError(msg)


def _function(core: Lookup, fn: Callable[..., Any]) -> Callable[..., Any]:
    find, clock, hits, note = core.find, core.clock, core.hit_ticker, core.note
    plain, key_of, switch = core.plain_keys, core.keys_for(fn), core.switch

    @functools.wraps(fn)
    def cached(*args: Any, **kwargs: Any) -> Any:
        key = args if plain and not kwargs else key_of(args, kwargs)
        try:
            entry = find(key)
        except TypeError as exc:
            raise core.bad_key(exc) from exc
        if entry is not None and clock() < entry.fresh_until and switch.enabled:
            entry.visited = True
            next(hits)
            note(entry)
            return entry.value
        return load(core, key, functools.partial(fn, *args, **kwargs))

    return cached


def _coroutine(core: Lookup, fn: Callable[..., Any]) -> Callable[..., Any]:
    find, clock, hits, note = core.find, core.clock, core.hit_ticker, core.note
    plain, key_of, switch = core.plain_keys, core.keys_for(fn), core.switch

    @functools.wraps(fn)
    async def cached(*args: Any, **kwargs: Any) -> Any:
        key = args if plain and not kwargs else key_of(args, kwargs)
        try:
            entry = find(key)
        except TypeError as exc:
            raise core.bad_key(exc) from exc
        if entry is not None and clock() < entry.fresh_until and switch.enabled:
            entry.visited = True
            next(hits)
            note(entry)
            return entry.value
        return await aload(core, key, functools.partial(fn, *args, **kwargs))

    return cached


def load(core: Lookup, key: Hashable, loader: Callable[[], Any]) -> Any:
    """Answer a call that found nothing fresh: serve, load or wait, as *core* decides."""
    while True:
        step = core.begin(key)
        if isinstance(step, Serve):
            if step.lead is not None:
                _refresh_in_thread(core, step.lead, loader)
            return _serve(core, step)
        with Tie(step.flight) as ends:
            # That load waits for this one, or for this thread: call, as it would be without a cache.
            if not ends or _runs_in_this_thread(step.flight):
                return loader()
            answer = _load_here(core, step, loader) if isinstance(step, Lead) else _wait(core, step.flight)
        if answer is not None:
            return _serve(core, answer)


def _runs_in_this_thread(flight: Flight) -> bool:
    """Tell whether *flight* runs on the loop of this thread, which a wait for it would stop."""
    if flight.loop is None:
        return False
    try:
        return asyncio.get_running_loop() is flight.loop
    except RuntimeError:
        return False


def _load_here(core: Lookup, lead: Lead, loader: Callable[[], Any]) -> Serve:
    flight = lead.flight
    outer = current_flight.set(flight)
    try:
        value = _keepable(loader())
    except Exception as exc:
        answer = core.fail(flight, exc)
        if answer is None:
            raise
        return answer
    except BaseException:
        core.abandon(flight)
        raise
    finally:
        current_flight.reset(outer)
    return Serve(core.land(flight, value))


def _wait(core: Lookup, flight: Flight) -> Serve | None:
    """Wait for somebody else's load; None if it was abandoned and has to be begun anew."""
    waiter = ThreadWaiter()
    if core.join(flight, waiter):
        patience = _shorter(core.load_timeout, time_left())
        try:
            if not any(waiter.park(seconds) for seconds in _glances(core, flight, patience)):
                return core.overdue(flight, patience)
        finally:
            core.leave(flight, waiter)
    return _outcome(core, flight)


def _refresh_in_thread(core: Lookup, lead: Lead, loader: Callable[[], Any]) -> None:
    def refresh() -> None:
        innermost.set(None)  # the deadline of a caller who has its answer binds nobody
        if core.depart(lead.flight):
            with contextlib.suppress(Exception):  # the core has been told; nobody waits for it here
                _load_here(core, lead, loader)

    try:
        core.refreshers.submit(Job(refresh, core.refreshes))
    except RuntimeError:  # no thread to be had any more: the interpreter is going down
        core.abandon(lead.flight)


async def aload(core: Lookup, key: Hashable, loader: Callable[[], Awaitable[Any]]) -> Any:
    """Answer an asynchronous call that found nothing fresh.

    Every load is a task of its own: it belongs to all who wait for it, not to the one that came first.
    """
    while True:
        step = core.begin(key)
        if isinstance(step, Serve):
            if step.lead is not None:
                _begin_task(core, step.lead, loader)
            return _serve(core, step)
        with Tie(step.flight) as ends:
            if not ends:
                return await loader()
            start = functools.partial(_begin_task, core, step, loader) if isinstance(step, Lead) else None
            answer = await _await(core, step.flight, start)
        if answer is not None:
            return _serve(core, answer)


async def _await(core: Lookup, flight: Flight, start: Callable[[], None] | None) -> Serve | None:
    waiter = TaskWaiter()
    if core.join(flight, waiter):
        try:
            if start is not None:
                start()
            for seconds in _glances(core, flight, core.load_timeout):
                if await waiter.park(seconds):
                    break
            else:
                return core.overdue(flight, core.load_timeout)
        finally:
            core.leave(flight, waiter)
    if start is not None:
        _raise_own(flight)
    return _outcome(core, flight)


def _raise_own(flight: Flight) -> None:
    """Raise, for whoever began the load, what ended it; the others get copies, or begin anew."""
    raised, flight.raised = flight.raised, None
    if raised is None or flight.outcome is Outcome.LANDED:
        return
    try:
        raise raised
    finally:
        del raised  # or this frame and its traceback would keep each other alive


def _begin_task(core: Lookup, lead: Lead, loader: Callable[[], Awaitable[Any]]) -> None:
    loop, flight = asyncio.get_running_loop(), lead.flight
    flight.loop, flight.running = loop, True
    task = loop.create_task(_load_in_task(core, lead, loader))
    core.refreshes.add(task)  # the loop itself keeps only weak references
    task.add_done_callback(core.refreshes.discard)
    task.add_done_callback(functools.partial(_task_ended, core, flight))
    flight.cancel = functools.partial(_cancel_from_anywhere, loop, task)


def _task_ended(core: Lookup, flight: Flight, task: asyncio.Task[None]) -> None:
    # A task that is cancelled before its first step never runs at all: then this is what ends the flight.
    if flight.outcome is Outcome.PENDING:
        core.abandon(flight)
    if not task.cancelled():
        task.exception()  # an interrupt went through the loop already; asyncio need not report it again


def _cancel_from_anywhere(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> None:
    with contextlib.suppress(RuntimeError):  # a closed loop has no tasks left
        loop.call_soon_threadsafe(task.cancel)


async def _load_in_task(core: Lookup, lead: Lead, loader: Callable[[], Awaitable[Any]]) -> None:
    flight = lead.flight
    current_flight.set(flight)
    # The deadline of whoever came first binds that caller, who leaves when it passes, not the load: others
    # may have more time. When nobody waits any more, the load is cancelled.
    innermost.set(None)
    try:
        value = _keepable(await (_in_time(core, loader) if flight.background else loader()))
    except Exception as exc:  # noqa: BLE001 - the core hands it to those who wait
        flight.raised = None if flight.background else exc
        core.fail(flight, exc)
    except BaseException as exc:
        flight.raised = exc
        core.abandon(flight)
        raise
    else:
        core.land(flight, value)


async def _in_time(core: Lookup, loader: Callable[[], Awaitable[Any]]) -> Any:
    """Await a refresh for as long as one may wait for a load: there is nobody who could leave it."""
    limit = asyncio.timeout(core.load_timeout)
    try:
        async with limit:
            return await loader()
    except TimeoutError as exc:
        if not limit.expired():
            raise
        raise core.too_slow(core.load_timeout) from exc


def _glances(core: Lookup, flight: Flight, seconds: float | None) -> Iterator[float]:
    """Cut a wait of *seconds* in pieces, and look after each whether the load can still end at all."""
    end = math.inf if seconds is None else MONOTONIC() + seconds
    while (left := end - MONOTONIC()) > 0.0:
        yield min(left, _GLANCE)
        if flight.stranded:
            core.abandon(flight)


def _shorter(*limits: float | None) -> float | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _keepable(value: Any) -> Any:
    """Return *value*, unless it can be used only once: the second caller would find it used up."""
    if isinstance(value, _USED_UP):
        if isinstance(value, CoroutineType):
            value.close()
        msg = (
            f"cannot cache a {type(value).__name__}: load the finished value (a coroutine function by `aget`)"
        )
        raise TypeError(msg)
    return value


def _outcome(core: Lookup, flight: Flight) -> Serve | None:
    if flight.outcome is Outcome.ABANDONED:
        return None
    if flight.outcome is Outcome.FAILED:
        raise core.failure_of(flight)
    return Serve(flight.entry, flight.stale)


def _serve(core: Lookup, answer: Serve) -> Any:
    core.note(answer.entry if answer.stale is None else answer.stale)
    return answer.entry.value
