"""The health of a service: what is checked, what is watched, and where it is told."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, TypeVar, Unpack

from ..engine import params
from ..engine.shape import describe
from ..typing import Seconds
from .mapping.dependency_map import DependencyMap, map_of
from .record import Record
from .registration import Checked, Watched, facts_of, judge_in, kind_of, witnesses_in
from .reporting import Reporting
from .serving.asgi import AsgiApp, AsgiHealth, asgi_app
from .serving.drain import drain_on_sigterm
from .serving.handler import EndpointWords
from .serving.heartbeat import Heartbeat
from .serving.status_file import StatusFile
from .serving.wsgi import WsgiHealth, wsgi_app
from .settings import CheckWords

if TYPE_CHECKING:
    from .serving.server import HealthServer

__all__ = ["Health"]

C = TypeVar("C", bound=Callable[[], Any])

_WORDS: Final = ", ".join(CheckWords.__annotations__)
_LAG: Final = 0.1  # of an interval


class Health(Reporting):
    """Know how a service is doing, and tell whoever asks, quickly.

    Checks run in parallel, each with its own timeout, at most one run of a check at a time. What they find
    is kept for *ttl* seconds; after that the next question has them run again, and is answered with what was
    found last, where that is not old: so a storm of probes costs nothing, and no probe waits for a slow
    check. Where a check has *interval*, it is run in the background, and no question ever runs it.

    The groups are "live" (is this process beyond help?), "ready" (shall it get requests?), "startup" (has it
    come up?), "all", and those that checks name. "ready" holds the local and the critical checks, and it
    fails until "startup" has been passed once, and while the service drains.

    Args:
        service: the name of the service.
        version: of the service; None: it is not told.
        timeout: seconds that a check may take, unless it has its own; above 0.
        ttl: seconds for which what a check finds is kept, unless it has its own; above 0.
        interval: seconds after which checks are run again in the background; above 0. None: they run when
            somebody asks.
        fail_after: failures in a row that make a check which has passed fail; at least 1.
        pass_after: passes in a row that make a failed check pass again; at least 1.
        grace: seconds from now in which a check that has not passed yet counts as starting, not as failed; 0
            for none.
        answer_within: seconds in which a question is answered, whatever the checks do: what has not been
            found by then is unknown. Probers wait for a second, if not told otherwise. 0: nobody waits.
        details: who is shown more than the status by the handlers: "never" anybody, "always" everybody, or a
            function of the request that says so.
        max_threads: checks that are plain functions and run at the same time; at least 1.
        listeners: called with every `HealthChanged`.
        clock: tells the time in seconds.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Concurrency: safe from any thread, task and event loop. Coroutine functions run on the loop on which it is
        started or asked first, or, where only threads ask, on one in a thread of its own. In a forked child
        nothing has been found yet.

    Source: draft-inadarei-api-health-check-06 for the words; D. Yanacek, "Implementing health checks" (Amazon
        Builders' Library), for what a probe may look at.
    """

    def check(
        self,
        name: str,
        *,
        critical: bool | None = None,
        timeout: Seconds | None = None,
        ttl: Seconds | None = None,
        failed_ttl: Seconds | None = None,
        interval: Seconds | None = None,
        fail_after: int | None = None,
        pass_after: int | None = None,
        grace: Seconds | None = None,
        stale_after: Seconds | None = None,
        groups: Iterable[str] | None = None,
        depends_on: Iterable[str] = (),
        external: bool | None = None,
        live_anyway: str | None = None,
        judged_by: Any = None,
    ) -> Callable[[C], C]:
        """Register a function as a check: `@health.check("postgres", critical=True)`.

        It passes where it returns None or True, and fails where it returns False or raises anything. It may
        return a `Finding` and say more. An exception becomes a short reason, in which secrets are masked.

        Args:
            name: of the check, in reports and for *depends_on* of others.
            critical: whether the groups it is in fail with it; otherwise they warn. None: where *groups*
                names "live", "ready" or "startup"; so a local check that is in "ready" without having been
                put there, such as `DiskSpace("/")`, warns.
            timeout: seconds that it may take; above 0. A coroutine function is cancelled then, a function
                runs on in its thread; neither is run again before it has really ended, or waited for. None:
                as for all.
            ttl: seconds for which what it finds is kept; above 0. None: as for all, or *interval*.
            failed_ttl: the same for a failure. None: *interval*; or *ttl*, but 5 at most.
            interval: seconds after which it is run again in the background, a failure, too, unless
                *failed_ttl* says otherwise; above 0. None: as for all.
            fail_after: failures in a row that make it fail once it has passed. None: as for all.
            pass_after: passes in a row that make it pass again. None: as for all.
            grace: seconds from the making of the `Health` in which it is starting, and has not failed, until
                it has passed once. None: as for all.
            stale_after: seconds after which what it found is too old to be believed; at least *ttl* and
                *failed_ttl*. None: three times the longer of them, and *timeout*.
            groups: beside "all". None: "ready" where it is local; "ready" and "startup" where it is critical;
                else none.
            depends_on: names of checks that it stands on, registered before. When it fails and one of them
                does, it is unknown how it is doing, and that one is the failure.
            external: whether it looks at anything outside this process. None: as the object given to `add`
                says, else True.
            live_anyway: why an external check is to decide about life and death of the process; None: it is
                refused in the group "live".
            judged_by: a circuit breaker or an adaptive throttle that sees the traffic to what this checks; or
                a pipeline or a decorated function with one. When the check is due and calls have
                ended there since the last look, what it says of them counts, and the check is not run; unless
                it says that they fail. None: it always is.

        Returns:
            A decorator that returns the function as it is.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: an argument is out of range; there is a check of this name; or an external check is to
                decide about liveness.
        """
        words: CheckWords = {
            "critical": critical,
            "timeout": timeout,
            "ttl": ttl,
            "failed_ttl": failed_ttl,
            "interval": interval,
            "fail_after": fail_after,
            "pass_after": pass_after,
            "grace": grace,
            "stale_after": stale_after,
            "groups": groups,
            "depends_on": depends_on,
            "external": external,
            "live_anyway": live_anyway,
            "judged_by": judged_by,
        }
        if callable(name):
            raise TypeError(f"name must be text: write @health.check('name') above {describe(name)}")
        params.named("name", name)

        def register(check: C) -> C:
            return self.add(check, name, **words)

        return register

    def add(self, check: C, name: str | None = None, **words: Unpack[CheckWords]) -> C:
        """Register a check.

        Args:
            check: a function or a coroutine function without arguments, or an object that can be called so,
                such as `DiskSpace("/")`. One that has `attach(loop)`, as `EventLoopLag` does, is given the
                first event loop on which a question is asked.
            name: of the check. None: the object's own name, or the function's.
            **words: the arguments of `check`.

        Returns:
            The check.

        Raises:
            TypeError: an argument has the wrong type, or an unknown name.
            ValueError: an argument is out of range; there is a check of this name; or an external check is to
                decide about liveness.
        """
        for word in words:
            if word not in CheckWords.__annotations__:
                params.refuse(TypeError, "a word of a check", f"must be one of {_WORDS}", word)
        external = words.get("external")
        facts = facts_of(
            _own_name(check) if name is None else name,
            kind_of(check, "check"),
            critical=words.get("critical"),
            external=getattr(check, "external", True) if external is None else external,
            groups=words.get("groups"),
            depends_on=words.get("depends_on", ()),
            live_anyway=words.get("live_anyway"),
        )
        judge = judge_in(words.get("judged_by"))
        entry = Checked(facts, check, Record(self._defaults.rules(words), self._born), judge)
        if entry.record.rules.background:
            entry.lag = random.uniform(0.0, _LAG * entry.record.rules.ttl)
        with self._monitor.lock:
            self._monitor.registry.add(entry)
        return check

    def watch(
        self,
        *parts: Any,
        critical: bool = False,
        groups: Iterable[str] | None = None,
        depends_on: Iterable[str] = (),
    ) -> None:
        """Report what policies and pools see of the traffic through them; nobody is probed for it.

        Of what is watched already the words given last hold. Where two of one kind have the same name, as
        retries without one have, the second gets a number: "retry 2".

        What cannot be used, such as what is behind an open circuit, is a warning, and no failure: the service
        has fallbacks for that, and does not get better by getting no requests.

        Args:
            *parts: policies, pipelines, pools, replica sets, pools that are watched; functions, which stand
                for the policies they are decorated with; or anything with `name` and `finding()`.
            critical: whether what cannot be used is a failure all the same.
            groups: beside "all". None: "ready" and "startup" where it is critical, else none.
            depends_on: names of checks that they stand on, registered before.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: an argument is out of range; or liveness is to depend on it.
        """
        params.flag("critical", critical)
        for witness in dict.fromkeys(one for part in parts for one in witnesses_in("what is watched", part)):
            kind = kind_of(witness, type(witness).__name__)
            with self._monitor.lock:
                registry = self._monitor.registry
                known = [
                    one for one in registry.entries if isinstance(one, Watched) and one.witness is witness
                ]
                facts = facts_of(
                    known[0].facts.name if known else registry.free_name(witness.name, kind),
                    kind,
                    critical=critical,
                    external=True,
                    groups=groups,
                    depends_on=depends_on,
                    live_anyway=None,
                )
                if known:
                    registry.change(known[0], facts)
                else:
                    registry.add(Watched(facts, witness))

    def remove(self, name: str) -> None:
        """Take out what was registered under *name*.

        Args:
            name: of checks, policies or pools.

        Raises:
            KeyError: there are none of this name.
            ValueError: something depends on it.

        Concurrency: a run that is under way ends in its own time, and counts no more.
        """
        with self._monitor.lock:
            self._monitor.registry.remove(name)

    def asgi(self, app: AsgiApp | None = None, **words: Unpack[EndpointWords]) -> AsgiHealth:
        """Return an ASGI app that answers at `/livez`, `/readyz`, `/startupz` and `/health`.

        Args:
            app: an ASGI app that gets everything else; None: everything else is answered with 404.
            **words: the arguments of `Endpoints`: *paths*, *prefix*, *aliases*, *details*, *retry_after* and
                *drain_delay*.

        Returns:
            The app.

        Raises:
            TypeError: an argument has the wrong type, or an unknown name.
            ValueError: an argument is out of range, or two groups share a path.
        """
        return asgi_app(self, app, **words)

    def wsgi(self, app: Any = None, **words: Unpack[EndpointWords]) -> WsgiHealth:
        """Return a WSGI app that answers at `/livez`, `/readyz`, `/startupz` and `/health`.

        Args:
            app: a WSGI app that gets everything else; None: everything else is answered with 404.
            **words: the arguments of `Endpoints`, without *drain_delay*.

        Returns:
            The app.

        Raises:
            TypeError: an argument has the wrong type, or an unknown name.
            ValueError: an argument is out of range, or two groups share a path.
        """
        return wsgi_app(self, app, **words)

    def serve(
        self, host: str = "127.0.0.1", port: int = 8081, **words: Unpack[EndpointWords]
    ) -> HealthServer:
        """Answer in a process that has no web server, from a few threads of its own.

        Args:
            host: the address to listen at; "0.0.0.0" for all of them, which a kubelet needs.
            port: to listen at; 0 for any that is free.
            **words: the arguments of `Endpoints`, without *drain_delay*.

        Returns:
            The server, which serves already: its `url`, and `close()`. It is a context manager, too.

        Raises:
            TypeError: an argument has the wrong type, or an unknown name.
            ValueError: an argument is out of range, or two groups share a path.
            OSError: nobody can listen there.
        """
        from .serving.server import serve  # noqa: PLC0415 - few need a server of their own

        return serve(self, host, port, **words)

    def grpc(self, server: Any, **words: Any) -> None:
        """Answer for `grpc.health.v1` on a server of gRPC.

        Args:
            server: a `grpc.Server` or `grpc.aio.Server`, before it is started.
            **words: the arguments of `resilient.integrations.grpc.add_health`.

        Raises:
            TypeError: an argument has the wrong type, or an unknown name.
            ValueError: an argument is out of range.
            ImportError: grpcio or grpcio-health-checking is not installed.
        """
        # The one arrow that points up: whoever has a Health looks for this here.
        from ..integrations.grpc import add_health  # noqa: PLC0415

        add_health(self, server, **words)

    def drain_on_sigterm(self, delay: Seconds = 5.0) -> None:
        """Have readiness fail at SIGTERM, and the process end *delay* seconds later.

        To be called when the server has installed its own handler; `asgi(drain_delay=...)` and
        `resilient.integrations.gunicorn.draining` see to that.

        Args:
            delay: seconds to go on serving; 0 or more.

        Raises:
            TypeError: *delay* has the wrong type.
            ValueError: *delay* is out of range.
            RuntimeError: this is not the main thread, or SIGTERM cannot be put off.
        """
        drain_on_sigterm(self, delay)

    def write(self, path: str | os.PathLike[str], *, group: str, every: Seconds = 5.0) -> Heartbeat:
        """Write how the service stands to a file again and again, for a process that has no port.

        `resilient health --file PATH --max-age SECONDS` reads it: an exec probe that fails when the file says
        so, or is old, or is not there.

        Args:
            path: of the file; its directory has to be there, and it is for its owner only.
            group: what the file is for: "live" where whoever reads it kills the process, "ready" where that
                gets no work then; or "startup", "all", or one that checks name.
            every: seconds between two of them; above 0.

        Returns:
            What ends it: `close()`, or a `with` block. It ends with the `Health`, too.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: an argument is out of range.
            KeyError: there is no such group.
            OSError: the file cannot be written.
            RuntimeError: an event loop runs in this thread: call it before, or in `asyncio.to_thread`.
        """
        seconds = params.seconds("every", every, above=True)
        return Heartbeat(self, StatusFile(path), group, seconds)

    def map(self) -> DependencyMap:
        """Draw what this service stands on: checks and policies, how they are doing, what depends on what.

        Returns:
            The map, as of now: `to_mermaid()`, `to_dot()`, `to_json()`.
        """
        return map_of(self.latest())


def _own_name(check: Any) -> Any:
    name = getattr(check, "name", None) or getattr(check, "__name__", None)
    return None if name == "<lambda>" else name
