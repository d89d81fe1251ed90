"""Ten thousand calls of one object at once, from eight threads and two event loops."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

THREADS, LOOPS, TASKS = 8, 2, 10
CALLS = 10_000
PER_CALLER = CALLS // (THREADS + LOOPS)


class Crowd:
    """Makes `CALLS` calls, numbered: *call* from the threads, *acall* from tasks of the loops."""

    def __init__(self, call: Callable[[int], object], acall: Callable[[int], Awaitable[object]]) -> None:
        self._call = call
        self._acall = acall
        self._together = threading.Barrier(THREADS + LOOPS)
        self._errors: list[BaseException] = []

    def run(self) -> None:
        """Return when all calls are over; fail if one raised."""
        threads = [threading.Thread(target=self._caller, args=(n,)) for n in range(THREADS + LOOPS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not self._errors, self._errors

    def _caller(self, place: int) -> None:
        numbers = range(place * PER_CALLER, (place + 1) * PER_CALLER)
        try:
            self._together.wait(10.0)
            if place < THREADS:
                for number in numbers:
                    self._call(number)
            else:
                asyncio.run(self._loop(numbers))
        except BaseException as exc:
            self._errors.append(exc)

    async def _loop(self, numbers: range) -> None:
        async with asyncio.TaskGroup() as group:
            for task in range(TASKS):
                group.create_task(self._task(numbers[task::TASKS]))

    async def _task(self, numbers: range) -> None:
        for number in numbers:
            await self._acall(number)
