"""Ten thousand calls of one object at once, from threads and event loops."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

CALLS = 10_000
LOOPS, TASKS = 2, 10


class Crowd:
    """Makes so many *calls*, numbered: *call* from so many *threads*, *acall* from tasks of two loops."""

    def __init__(
        self,
        call: Callable[[int], object],
        acall: Callable[[int], Awaitable[object]],
        *,
        threads: int = 8,
        calls: int = CALLS,
    ) -> None:
        self._call = call
        self._acall = acall
        self._threads = threads
        self._places = threads + LOOPS
        self._calls = calls
        self._together = threading.Barrier(self._places)
        self._errors: list[BaseException] = []

    def run(self) -> None:
        """Return when all calls are over; fail if one raised."""
        threads = [threading.Thread(target=self._caller, args=(n,)) for n in range(self._places)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not self._errors, self._errors

    def _caller(self, place: int) -> None:
        numbers = range(place, self._calls, self._places)
        try:
            self._together.wait(10.0)
            if place < self._threads:
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
