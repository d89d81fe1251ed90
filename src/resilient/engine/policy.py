"""What every policy is: a named object that is a decorator."""

from __future__ import annotations

import inspect
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, NoReturn, cast

from ..typing import P, T
from .announcing import Announcing
from .order import check_order
from .shape import Shape, describe, shape_of, without_partials

__all__ = ["Policy", "attach", "callee_of", "policies_of"]

_MARK = "__resilient__"
# What `inspect.markcoroutinefunction` and asyncio before it leave on a function that returns a coroutine.
_COROUTINE_MARKS = frozenset({"_is_coroutine_marker", "_is_coroutine"})
_NOT_PLAIN = inspect.CO_COROUTINE | inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


def policies_of(fn: Callable[..., Any]) -> tuple[Policy, ...]:
    """Return the policies on *fn*, outermost first."""
    marks = getattr(without_partials(fn), _MARK, ())
    # A proxy answers to any name: what it answers is not our mark.
    return marks if isinstance(marks, tuple) else ()


class Policy(Announcing, metaclass=ABCMeta):
    """Base of every policy.

    A subclass says how it wraps a callable of a given shape (`wrap`); decorating, calling directly and
    listening are the same for all.

    Concurrency: one object serves any number of functions, threads, tasks and event loops at once. Its
    attributes are configuration, or totals guarded by a lock; what belongs to one call lives in the wrapper.
    """

    kind: ClassVar[str]
    checks_order: bool = True
    """Whether decorating refuses an order that is known to go wrong."""

    @property
    def layers(self) -> tuple[Policy, ...]:
        """The policies this one stands for, outermost first: itself, if it is not made of others."""
        return (self,)

    @property
    @abstractmethod
    def name(self) -> str:
        """The policy's name: in errors, events and statistics."""

    @abstractmethod
    def wrap(self, fn: Callable[..., Any], shape: Shape) -> Callable[..., Any]:
        """Return *fn*, which has *shape*, under this policy."""

    @abstractmethod
    def stats(self) -> object:
        """Return what the policy has counted, as a frozen dataclass."""

    def __call__(self, fn: Callable[P, T], /) -> Callable[P, T]:
        """Return *fn* under this policy, as a plain function of the same shape and signature.

        Args:
            fn: a function, coroutine function, generator function or async generator function; a method, a
                `partial` or an object with `__call__` of one of these kinds; or a `classmethod` or
                `staticmethod` object, which is returned as one.

        Returns:
            The guarded function.

        Raises:
            TypeError: *fn* is a class or cannot be called.
            PipelineOrderError: *fn* is under a policy already that must not be inside this one.
        """
        return cast("Callable[P, T]", attach(self, fn))

    def call(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call *fn* once under this policy.

        Args:
            fn: an ordinary function or any callable with a plain result, or a generator function.
            *args: for *fn*.
            **kwargs: for *fn*.

        Returns:
            What *fn* returns; a guarded generator where *fn* is a generator function.

        Raises:
            TypeError: *fn* is asynchronous: use `acall`.
        """
        if _is_plain(fn):
            return cast("T", self._invoker(fn, *args, **kwargs))
        if shape_of(fn) is Shape.COROUTINE:
            msg = f"{describe(fn)} is a coroutine function: use `await {self.kind}.acall(...)`"
            raise TypeError(msg)
        return self(fn)(*args, **kwargs)

    async def acall(self, fn: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call and await the coroutine function *fn* once under this policy.

        Args:
            fn: a coroutine function.
            *args: for *fn*.
            **kwargs: for *fn*.

        Returns:
            What *fn* returns.

        Raises:
            TypeError: *fn* is not a coroutine function.
        """
        if shape_of(fn) is not Shape.COROUTINE:
            msg = f"acall needs a coroutine function, {describe(fn)} is none: use call"
            raise TypeError(msg)
        return cast("T", await self._ainvoker(fn, *args, **kwargs))

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled.

        Raises:
            TypeError: always.
        """
        msg = (
            f"{self.kind} {self.name!r} cannot be pickled: it is shared by the calls of one process; "
            "give it a name at module level and import it where it is needed"
        )
        raise TypeError(msg)

    # One wrapper around "call what you are given" serves every direct call; wrapping each callee anew would
    # cost more than the call. Made at the first use: most policies are only decorators.

    @property
    def _invoker(self) -> Callable[..., Any]:
        invoker = self.__dict__.get("_invoke")
        if invoker is None:
            invoker = vars(self)["_invoke"] = self.wrap(_invoke, Shape.FUNCTION)
        return cast("Callable[..., Any]", invoker)

    @property
    def _ainvoker(self) -> Callable[..., Any]:
        invoker = self.__dict__.get("_ainvoke")
        if invoker is None:
            invoker = vars(self)["_ainvoke"] = self.wrap(_ainvoke, Shape.COROUTINE)
        return cast("Callable[..., Any]", invoker)


def attach(policy: Policy, fn: Any) -> Any:
    """Put *policy* on *fn* and leave a mark of it."""
    if isinstance(fn, classmethod | staticmethod):
        return type(fn)(attach(policy, fn.__func__))
    shape = shape_of(fn)
    layers, inside = policy.layers, policies_of(fn)
    if policy.checks_order:
        check_order(layers, inside, describe(fn))
    wrapper = policy.wrap(fn, shape)
    if not hasattr(fn, "__name__"):  # a partial or an object; the wrapper's own name would mean nothing
        wrapper.__qualname__ = describe(fn)
        wrapper.__name__ = wrapper.__qualname__.rpartition(".")[2]
    setattr(wrapper, _MARK, (*layers, *inside))
    return wrapper


def callee_of(fn: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return who is called, and with what: `call` and `acall` hand their callee on as an argument."""
    return (args[0], args[1:]) if fn is _invoke or fn is _ainvoke else (fn, args)


def _is_plain(fn: Callable[..., Any]) -> bool:
    """Whether a call of *fn* is over when it returns. Quick for functions and methods; the rest is asked."""
    code = getattr(fn, "__code__", None)
    if code is not None and _COROUTINE_MARKS.isdisjoint(getattr(fn, "__dict__", ())):
        return not code.co_flags & _NOT_PLAIN
    return isinstance(fn, type) or shape_of(fn) is Shape.FUNCTION


def _invoke(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    return fn(*args, **kwargs)


async def _ainvoke(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    return await fn(*args, **kwargs)
