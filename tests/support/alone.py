"""Tests that want the machine for themselves, after all those that get on with others side by side."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from fnmatch import fnmatchcase

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController


class AloneLast(LoadScopeScheduling):  # type: ignore[misc]  # it has no types
    """Give each worker a file at a time; what has to be alone goes to one, once the others have ended.

    Args:
        config: Of the run.
        log: Where to tell what was given to whom.
        first: Patterns of the files to begin with, in the manner of a shell, in this order.
        alone: Patterns of the files that have to be alone.
    """

    def __init__(
        self, config: pytest.Config, log: Producer | None, first: Sequence[str], alone: Sequence[str]
    ) -> None:
        super().__init__(config, log)
        self._first = first
        self._alone = alone
        # Few tests may take long: ordered by how many a file has, the longest files would come last.
        config.option.loadscopereorder = False

    def add_node_collection(self, node: WorkerController, collection: Sequence[str]) -> None:
        """Note what a worker has found; let it go if it came for one that died and has found other tests."""
        super().add_node_collection(node, collection)
        if node not in self.registered_collections:
            node.shutdown()

    def remove_node(self, node: WorkerController) -> str | None:
        """Forget a worker that has ended, and go on; if it died, return the test of which it did.

        It may be the one that others waited for. What it did not come to is theirs, but for what it died of.
        """
        files = self.assigned_work.pop(node)
        left = [(tests, test) for tests in files.values() for test, done in tests.items() if not done]
        for tests, test in left[:1]:
            tests[test] = True
        self.workqueue.update({file: tests for file, tests in files.items() if not all(tests.values())})
        for other in self.nodes:
            self._reschedule(other)
        return left[0][1] if left else None

    def _split_scope(self, nodeid: str) -> str:
        return nodeid.partition("::")[0]

    def _next(self) -> str | None:
        """Return the file whose turn it is; None if there is none, or those left have to wait to be alone."""
        waiting: list[str] = [*self.workqueue]
        together = [file for file in waiting if _place(file, self._alone) == len(self._alone)]
        if together:
            return min(together, key=lambda file: _place(file, self._first))
        return waiting[0] if waiting and len(self.nodes) == 1 else None

    def _assign_work_unit(self, node: WorkerController) -> None:
        file = self._next()
        if file is None:
            return
        self.workqueue.move_to_end(file, last=False)
        # It may have died a moment ago, and nobody been told yet: `remove_node` gives this to others then.
        with contextlib.suppress(OSError):
            super()._assign_work_unit(node)

    def _reschedule(self, node: WorkerController) -> None:
        if node not in self.registered_collections:
            return  # it collects, in the place of one that died
        if self.workqueue and self._next() is None and not self._stays(node):
            node.shutdown()
        # A worker keeps the last test it was given until it is given another, or is told to end: two, then.
        while not node.shutting_down:
            super()._reschedule(node)
            if self._pending_of(self.assigned_work[node]) >= 2 or (self.workqueue and self._next() is None):
                break

    def _stays(self, node: WorkerController) -> bool:
        return node is next((one for one in self.nodes if not one.shutting_down), None)


def _place(file: str, patterns: Sequence[str]) -> int:
    """Return the number of the pattern that *file* has; how many there are, if it has none."""
    return next((n for n, pattern in enumerate(patterns) if fnmatchcase(file, pattern)), len(patterns))
