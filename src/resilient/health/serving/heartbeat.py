"""A report in a file, written again and again, for processes that serve nothing."""

from __future__ import annotations

import threading
import weakref
from types import TracebackType
from typing import Final, Self

from ...events import log_fault
from .handler import Reporter
from .status_file import StatusFile

__all__ = ["Heartbeat"]


_PATIENCE: Final = 1.0  # seconds; a report takes less, unless the disk hangs


class Heartbeat:
    """Write how a service stands to a file every few seconds, until it is closed or the `Health` is gone.

    When the process hangs or is killed, the file grows old, and whoever reads it sees that. Leaving the block
    of one closes it.

    Args:
        health: whose reports are written.
        file: where they are written to.
        group: of which they are.
        every: seconds between two of them.

    Concurrency: writes in a daemon thread of its own; a forked child writes nothing.
    """

    def __init__(self, health: Reporter, file: StatusFile, group: str, every: float) -> None:
        self._file = file
        self._ended = threading.Event()
        # The first one here, so that whoever cannot write learns it.
        file.write(health.report(group))
        args = (weakref.ref(health), file, group, every, self._ended)
        self._thread = threading.Thread(target=_beat, args=args, name="resilient-health-file", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write no more, and take the file away; closing twice does nothing.

        Concurrency: waits for the thread if it is about to write, for a second at most.
        """
        if not self._ended.is_set():
            self._ended.set()
            # Or it might write once more, in the place of whoever has the file by then.
            if threading.current_thread() is not self._thread:
                self._thread.join(_PATIENCE)
            self._file.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _beat(
    reference: weakref.ref[Reporter], file: StatusFile, group: str, every: float, ended: threading.Event
) -> None:
    faulty = False
    while not ended.wait(every) and (health := reference()) is not None:
        try:
            file.write(health.report(group))
            faulty = False
        except Exception:  # noqa: BLE001 - the file grows old, and tells it so
            if not faulty:
                faulty = True
                log_fault("the health of this process cannot be written to %s", file.path)
        del health
