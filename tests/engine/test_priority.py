"""Priorities: by name or themselves, carried by the context, told by a service's resource."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from resilient import Priority, current_priority, priority, service_criticality
from resilient.engine.priority import priority_of

NAMES = ("probe", "critical", "default", "sheddable")


def test_lower_is_more_important():
    """So that they can be compared and sorted."""
    assert [level.name.lower() for level in sorted(Priority)] == [*NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_priority_is_given_itself_or_by_name(name: str):
    """In lower case."""
    level = Priority[name.upper()]
    assert priority_of("level", name) is level
    assert priority_of("level", level) is level


@pytest.mark.parametrize(
    ("value", "error", "rule"),
    [
        ("urgent", ValueError, "must be one of 'probe', 'critical', 'default', 'sheddable', got 'urgent'"),
        (
            "CRITICAL",
            ValueError,
            "must be one of 'probe', 'critical', 'default', 'sheddable', got 'CRITICAL'",
        ),
        ("", ValueError, "must be one of 'probe', 'critical', 'default', 'sheddable', got ''"),
        (1, TypeError, "must be a Priority or one of 'probe', 'critical', 'default', 'sheddable', got 1"),
        (
            None,
            TypeError,
            "must be a Priority or one of 'probe', 'critical', 'default', 'sheddable', got None",
        ),
        (
            True,
            TypeError,
            "must be a Priority or one of 'probe', 'critical', 'default', 'sheddable', got True",
        ),
    ],
)
def test_anything_else_is_refused(value: Any, error: type[Exception], rule: str):
    """A number, too: nobody would remember which is which."""
    with pytest.raises(error, match=f"^level {rule}$"):
        priority(value)


def test_nothing_said_is_the_default():
    """Whatever the arguments: it stands in for a function of them."""
    assert current_priority() is Priority.DEFAULT
    assert current_priority(1, two=3) is Priority.DEFAULT


def test_blocks_nest():
    """The innermost counts, and each restores what was before, however it is left."""

    def fail() -> None:
        assert current_priority() is Priority.SHEDDABLE
        raise LookupError

    with priority("critical"):
        with pytest.raises(LookupError), priority(Priority.SHEDDABLE):
            fail()
        assert current_priority() is Priority.CRITICAL
        with priority("probe") as block:
            assert isinstance(block, priority)
            assert current_priority() is Priority.PROBE
        assert current_priority() is Priority.CRITICAL
    assert current_priority() is Priority.DEFAULT


def test_block_may_be_used_again():
    """One after the other."""
    block = priority("critical")
    for outside in ("sheddable", "probe"):
        with priority(outside):
            with block:
                assert current_priority() is Priority.CRITICAL
            assert current_priority() is Priority[outside.upper()]


async def test_tasks_carry_it_along_and_keep_theirs_to_themselves():
    """A task has that of where it was made; what it sets inside does not leak."""

    async def work() -> tuple[Priority, Priority]:
        before = current_priority()
        async with priority("probe"):
            await asyncio.sleep(0)
            return before, current_priority()

    async with priority("sheddable"):
        task = asyncio.create_task(work())
    assert current_priority() is Priority.DEFAULT
    assert await task == (Priority.SHEDDABLE, Priority.PROBE)
    assert current_priority() is Priority.DEFAULT


def test_plain_threads_begin_without():
    """As for every context variable; a copy of the context carries it."""
    seen: list[Priority] = []
    with priority("critical"):
        context = contextvars.copy_context()
        thread = threading.Thread(target=lambda: seen.append(context.run(current_priority)))
        thread.start()
        thread.join()
    assert seen == [Priority.CRITICAL]


async def test_block_in_an_asynchronous_generator_may_be_left_in_another_context():
    """Where the consumer's task is another one at the end."""

    async def stream() -> AsyncIterator[Priority]:
        with priority("sheddable"):
            yield current_priority()

    async def step(items: AsyncIterator[Priority]) -> Priority | None:
        return await anext(items, None)

    items = stream()
    assert await asyncio.create_task(step(items)) is Priority.SHEDDABLE
    assert await asyncio.create_task(step(items)) is None


@pytest.mark.parametrize(
    ("attributes", "level"),
    [
        ("service.criticality=critical", Priority.CRITICAL),
        ("service.criticality=high", Priority.DEFAULT),
        ("service.criticality=medium", Priority.DEFAULT),
        ("service.criticality=low", Priority.SHEDDABLE),
        ("service.name=shop,service.criticality=low,x=y", Priority.SHEDDABLE),
        (" service.criticality = low ", Priority.SHEDDABLE),
        ("service.criticality=LOW", Priority.SHEDDABLE),
        ("service.criticality=%6cow", Priority.SHEDDABLE),
        ("service.criticality=urgent", Priority.DEFAULT),
        ("service.criticality=", Priority.DEFAULT),
        ("service.criticality", Priority.DEFAULT),
        ("my.service.criticality=low", Priority.DEFAULT),
        ("=,,=low,%", Priority.DEFAULT),
        ("", Priority.DEFAULT),
    ],
)
def test_service_tells_its_criticality(attributes: str, level: Priority):
    """In its OpenTelemetry resource; what makes no sense there is nothing said."""
    assert service_criticality({"OTEL_RESOURCE_ATTRIBUTES": attributes}) is level


def test_service_is_asked_in_its_environment(monkeypatch: pytest.MonkeyPatch):
    """As it is at that moment."""
    monkeypatch.delenv("OTEL_RESOURCE_ATTRIBUTES", raising=False)
    assert service_criticality() is Priority.DEFAULT
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.criticality=low")
    assert service_criticality() is Priority.SHEDDABLE
