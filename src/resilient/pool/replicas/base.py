"""What replica sets of both kinds have in common: their settings, and all that needs no waiting."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any, ClassVar, Final, Generic

from ...engine import params
from ...engine.clock import MONOTONIC
from ...engine.finding import Fact, Finding, Status, worst
from ...engine.living import remember
from ...engine.measure import Measure
from ...policies.circuit_breaker.breaker import CircuitBreaker
from ...typing import Clock, Seconds
from ..front import C, Front
from ..measures import of_replicas
from .gauges import Gauge
from .nodes import Replica
from .routing import Routing
from .stats import ReplicaSetStats

__all__ = ["Base"]

# What opens a breaker that nobody gave: failures in a row, or half of at least ten within ten seconds.
_FAILURES: Final = 3
_WINDOW: Final = 10.0
_FIRST_PAUSE: Final = 1.0  # seconds it stays open; twice as long each further time
_LONGEST_PAUSE: Final = 15.0


class Base(Generic[C], metaclass=ABCMeta):
    """Base of both replica sets; see `ReplicaSet` for the arguments."""

    kind: ClassVar[str]
    _pool: ClassVar[type[Front[Any, Any]]]
    _other: ClassVar[str]
    _gauge: Gauge | None = None

    def __init__(
        self,
        primary: Front[C, Any],
        replicas: Iterable[Front[C, Any]],
        *,
        name: str | None = None,
        timeout: Seconds | None = None,
        breaker: Callable[[str], CircuitBreaker] | None = None,
        fallback_to_primary: bool = True,
        primary_share: float = 0.5,
        sticky: Seconds = 1.0,
        lag: Callable[[C], Any] | None = None,
        max_lag: Seconds | None = None,
        lag_every: Seconds = 1.0,
        clock: Clock = MONOTONIC,
    ) -> None:
        pools = self._checked(primary, replicas)
        label = primary.name if name is None else params.named("name", name)
        share = params.ratio("primary_share", primary_share)
        if not params.flag("fallback_to_primary", fallback_to_primary) and not pools:
            rule = "must not be empty where the primary is not to be read from"
            params.refuse(ValueError, "replicas", rule, replicas)
        if (lag is None) is not (max_lag is None):
            params.refuse(ValueError, "max_lag", "must be given with lag, and not without it", max_lag)
        time = params.callback("clock", clock)
        self._routing = Routing(
            label,
            primary,
            _with_breakers(label, pools, breaker, time),
            timeout=primary._core.rules.timeout if timeout is None else params.seconds("timeout", timeout),  # noqa: SLF001
            sticky=params.seconds("sticky", sticky),
            share=share if fallback_to_primary else None,
            clock=time,
        )
        every = params.seconds("lag_every", lag_every, above=True)
        if lag is not None and max_lag is not None:
            most = params.seconds("max_lag", max_lag)
            self._gauge = self._gauge_for(self._lag(lag), most, every)
            self._routing.watch(self._gauge.start)
        remember(self)

    @property
    def name(self) -> str:
        """The replica set's name."""
        return self._routing.name

    @property
    def breakers(self) -> dict[str, CircuitBreaker]:
        """The replicas' breakers, by the names of their pools: to be forced open, or listened to."""
        return {replica.pool.name: replica.breaker for replica in self._routing.replicas}

    def stats(self) -> ReplicaSetStats:
        """Return what the replica set has counted, and how its pools do."""
        return self._routing.stats()

    def measures(self) -> Iterator[Measure]:
        """Return what metrics tell of it."""
        return of_replicas(self.stats())

    def finding(self) -> Finding:
        """Return how it stands, for health.

        Failing: the primary's pool is, or no replica can be read from, and the primary is not to be. A
        warning: a replica is out, or one of the pools warns.
        """
        replicas = self._routing.replicas
        primary = self._routing.primary.finding()
        flaws = [(primary.status, f"primary {self._routing.primary.name!r}: {primary.output}")]
        facts: dict[str, Fact] = {}
        for replica in replicas:
            name, pool = replica.pool.name, replica.pool.finding()
            facts[name] = "up" if replica.is_up else replica.state
            if replica.lag is not None:
                facts[f"{name} lag"] = replica.lag
            if not replica.is_up:
                flaws.append((Status.WARN, f"replica {name!r} is out: {_why_out(replica)}"))
            elif pool.status is not Status.PASS:
                flaws.append((Status.WARN, f"replica {name!r}: {pool.output}"))
        if self._routing.fallback is None and all(_refuses(replica) for replica in replicas):
            flaws.append((Status.FAIL, "no replica can be read from"))
        found = [(status, text) for status, text in flaws if status is not Status.PASS]
        return Finding(
            worst(*(status for status, _ in found)),
            "; ".join(text for _, text in found),
            value=float(sum(replica.is_up for replica in replicas)),
            unit="replicas",
            facts=facts,
        )

    def __repr__(self) -> str:
        up, all_of_them = len(self._routing.up), len(self._routing.replicas)
        return f"<{self.kind} {self.name!r} {up} of {all_of_them} replicas up>"

    @abstractmethod
    def _gauge_for(self, lag: Callable[[C], Any], max_lag: float, every: float) -> Gauge: ...

    def _stop_asking(self) -> None:
        self._routing.watch(None)
        if self._gauge is not None:
            self._gauge.stop()

    def _lag(self, lag: Callable[[C], Any]) -> Callable[[C], Any]:
        return params.plain_function("lag", lag)

    @property
    def _pools(self) -> list[Any]:
        return [self._routing.primary, *self._replicas]

    @property
    def _replicas(self) -> tuple[Any, ...]:
        return tuple(replica.pool for replica in self._routing.replicas)

    def _timeout(self, timeout: Seconds | None) -> float:
        return self._routing.timeout if timeout is None else params.seconds("timeout", timeout)

    def _checked(self, primary: Front[C, Any], replicas: Iterable[Front[C, Any]]) -> list[Front[C, Any]]:
        self._check("primary", primary)
        if not isinstance(replicas, Iterable):
            params.refuse(TypeError, "replicas", "must be a collection of pools", replicas)
        pools = [*replicas]
        names = {primary.name}
        for pool in pools:
            self._check("replicas", pool)
            if pool is primary:
                params.refuse(
                    ValueError, "replicas", "must not hold the primary, which is read from anyway", pool
                )
            if pool.name in names:
                params.refuse(ValueError, "replicas", "must have a name of its own each", pool)
            names.add(pool.name)
        return pools

    def _check(self, parameter: str, pool: object) -> None:
        if isinstance(pool, self._pool):
            return
        rule = (
            f"must be a {self._pool.__name__}"
            if parameter == "primary"
            else f"must hold {self._pool.__name__}s"
        )
        hint = f"; {self._other} takes this one" if isinstance(pool, Front) else ""
        params.refuse(TypeError, parameter, rule + hint, pool)

    def _lender(self, connection: Callable[[], Any]) -> Any:
        """Return what stands for a pool where a function is to be lent connections."""
        return SimpleNamespace(kind=self.kind, name=self.name, connection=connection)


def _why_out(replica: Replica) -> str:
    return replica.state if replica.stock.closed or replica.held else replica.breaker.finding().output


def _refuses(replica: Replica) -> bool:
    """Tell whether no read would be let in, not even to find out."""
    return not replica.is_up and (replica.stock.closed or replica.breaker.finding().status is Status.FAIL)


def _with_breakers(
    label: str, pools: list[Front[Any, Any]], make: Callable[[str], CircuitBreaker] | None, clock: Clock
) -> list[tuple[Front[Any, Any], CircuitBreaker]]:
    """Return *pools* with a breaker for each."""
    make = _breaker_by(clock) if make is None else params.plain_function("breaker", make, classes=True)
    breakers: list[CircuitBreaker] = []
    for pool in pools:
        breaker = make(f"{label}/{pool.name}")
        if not isinstance(breaker, CircuitBreaker):
            params.refuse(TypeError, "breaker", "must return a CircuitBreaker", breaker)
        if breaker in breakers:
            params.refuse(ValueError, "breaker", "must return another one for each replica", breaker)
        breakers.append(breaker)
    return [*zip(pools, breakers, strict=True)]


def _breaker_by(clock: Clock) -> Callable[[str], CircuitBreaker]:
    """Return what makes the breakers where nobody says how."""
    return lambda name: CircuitBreaker(
        name,
        failure_ratio=0.5,
        window=_WINDOW,
        fail_max=_FAILURES,
        reset_timeout=_pause_after,
        clock=clock,
    )


def _pause_after(times: int) -> float:
    """Return for how long a breaker stays open that opens for so many times in a row."""
    return min(_FIRST_PAUSE * 2.0 ** min(times - 1, 10), _LONGEST_PAUSE)
