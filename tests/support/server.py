"""A real server as a child process that tests can stop, kill, freeze and bring back on the same port."""

from __future__ import annotations

import signal
import subprocess
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Self

import psutil

from tests.support import reaper
from tests.support.ports import free_port

_READY_WITHIN = 20.0
_STOP_WITHIN = 10.0
_POLL_EVERY = 0.01


class ServerError(RuntimeError):
    """Say why a server could not be started; carries the end of its log."""


class ServerProcess(ABC):
    """Run one server with a free port and a temporary directory of its own.

    `stop` asks it to end, `kill` is a crash, `pause` freezes it so that connections hang, `restart` brings it
    back on the same port with the same directory. As a context manager it starts and closes itself.
    Not for use from several threads at once.
    """

    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    host: ClassVar[str] = "127.0.0.1"

    def __init__(self) -> None:
        self.port = free_port(self.host)
        self._directory = TemporaryDirectory(prefix=f"resilient-{type(self).__name__.lower()}-")
        self.directory = Path(self._directory.name)
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def _command(self) -> list[str]:
        """Return the command line that runs the server in the foreground."""

    @abstractmethod
    def _answers(self) -> bool:
        """Tell whether the server answers a request."""

    def _process_options(self) -> dict[str, Any]:
        return {}

    @property
    def log(self) -> str:
        """Everything the server has printed so far."""
        path = self._log_path
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def _log_path(self) -> Path:
        return self.directory / "server.log"

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        return self._running_process().pid

    @property
    def running(self) -> bool:
        """Whether the process is alive, frozen or not."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            ServerError: it runs already, ended at once, or did not answer in time.
        """
        if self.running:
            raise ServerError(f"{self!r} is already running")
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                start_new_session=True,
                **self._process_options(),
            )
        reaper.hold(self._process.pid, self.directory)
        self._wait_until_ready()

    def stop(self) -> None:
        """Ask the server to end, and kill it if it has not within ten seconds; do nothing if it is down."""
        if self._process is None:
            return
        self.resume()
        self._signal(self.stop_signal)
        try:
            self._process.wait(_STOP_WITHIN)
        except subprocess.TimeoutExpired:
            self.kill()
        else:
            self._forget()

    def kill(self) -> None:
        """End the server and its children with SIGKILL, as the out-of-memory killer does."""
        if self._process is None:
            return
        self._signal_tree(signal.SIGKILL)
        self._process.wait(_STOP_WITHIN)
        self._forget()

    def pause(self) -> None:
        """Freeze the server: the kernel still accepts connections, nobody answers them."""
        self._signal_tree(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen server go on."""
        self._signal_tree(signal.SIGCONT)

    def restart(self) -> None:
        """Stop the server if it is up, and start it on the same port."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop the server for good and remove its directory."""
        self.stop()
        self._directory.cleanup()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} on port {self.port}, {'up' if self.running else 'down'}>"

    def _running_process(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ServerError(f"{self!r} is not running")
        return self._process

    def _signal(self, number: signal.Signals) -> None:
        self._running_process().send_signal(number)

    def _signal_tree(self, number: signal.Signals) -> None:
        # The children by name, not the process group: each child of PostgreSQL leads a session of its own.
        with suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self.pid)
            for process in (parent, *parent.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(number)

    def _forget(self) -> None:
        reaper.drop(self._running_process().pid)
        self._process = None

    def _wait_until_ready(self) -> None:
        process, give_up_at = self._running_process(), time.monotonic() + _READY_WITHIN
        while not self._answers():
            if process.poll() is not None:
                self._forget()
                raise ServerError(f"{self!r} ended with {process.returncode}:\n{self.log[-2000:]}")
            if time.monotonic() > give_up_at:
                self.kill()
                raise ServerError(f"{self!r} did not answer within {_READY_WITHIN} s:\n{self.log[-2000:]}")
            time.sleep(_POLL_EVERY)
