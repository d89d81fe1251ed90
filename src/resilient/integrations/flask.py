"""Flask: the middleware as an extension, refusals in views as problem documents, health as a blueprint."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Final, Unpack

from ..engine import params
from ..health.serving.handler import (
    Endpoints,
    EndpointWords,
    Place,
    Reporter,
    place_below,
    without_drain_delay,
)
from ..health.serving.wsgi import asked_of
from ..web.door import Words, key_of, words_of
from ..web.keys import Key
from ..web.notes import answer_inside, believed
from ..web.problem import REFUSALS
from ..web.request import WsgiRequest
from ..web.wsgi import ResilienceMiddleware
from . import needing

with needing("Flask", extra="flask"):
    from flask import Blueprint, Flask, Response, request

__all__ = ["Resilience", "health_blueprint", "request_key"]

_PREFIX: Final = "RESILIENT_"
_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")


class Resilience:
    """Guard a Flask app by the middleware, and answer refusals in its views as problem documents.

    Whatever raises a `RejectedError` or a `CallTimeoutError` in a view, such as an open circuit or a
    `RateLimiter` as its decorator, is answered with 429, 503 or 504 and, where it is known, a `Retry-After`.

    Each of *words* may be set or overruled in the app's configuration, as `RESILIENT_RATE_LIMIT` and so on.

    Args:
        app: the app; None where `init_app` gets it later, from an application factory.
        **words: the arguments of `resilient.wsgi.ResilienceMiddleware`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or has an unknown name.
        RuntimeError: the app is guarded already.

    Concurrency: serves any number of apps, requests and threads at once.
    """

    def __init__(self, app: Flask | None = None, **words: Unpack[Words]) -> None:
        self._words = words_of("a word of Resilience", words)
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Guard *app*.

        Args:
            app: an app whose configuration is complete and whose first request is to come.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: an argument is out of range, or has an unknown name.
            RuntimeError: the app is guarded already.
        """
        if "resilient" in app.extensions:
            raise RuntimeError(f"{app!r} is guarded already: Resilience.init_app was called before")
        words: Words = {**self._words, **_configured(app.config)}
        app.wsgi_app = ResilienceMiddleware(app.wsgi_app, **words)  # type: ignore[method-assign]
        for error in REFUSALS:
            app.register_error_handler(error, _answer)
        app.extensions["resilient"] = self


def _configured(config: Mapping[str, Any]) -> Words:
    names = [name for name in config if name.startswith(_PREFIX)]
    return words_of(f"{_PREFIX}*", {name.removeprefix(_PREFIX).lower(): config[name] for name in names})


def _answer(error: Exception) -> Response:
    answer = answer_inside(error, request.environ)
    return Response(answer.body, answer.status, answer.fields)


def health_blueprint(health: Reporter, *, name: str = "health", **words: Unpack[EndpointWords]) -> Blueprint:
    """Make a blueprint by which the health of a service is asked for.

    What the app does before each request, such as asking for a login, it does before these, too; with
    `Resilience(app, health=health)` health is answered first.

    Args:
        health: the `Health` that is reported.
        name: of the blueprint.
        **words: the arguments of `resilient.health.Endpoints`, without *drain_delay*.

    Returns:
        The blueprint.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.
    """
    endpoints = without_drain_delay(Endpoints(health, **words))
    blueprint = Blueprint(name, __name__)

    def answer(place: Place) -> Response:
        answer = endpoints.respond(place, asked_of(request.environ))
        # In a list, or Flask would tell the length of the body that HEAD does not get.
        return Response([answer.body], answer.status, answer.headers)

    def by_name(name: str) -> Response:
        return answer(place_below(name))

    # A slash at the end does no harm; and a wrong method gets our answer, which nobody may cache.
    rule: dict[str, Any] = {"methods": _METHODS, "provide_automatic_options": False, "strict_slashes": False}
    for number, (path, place) in enumerate(endpoints.places):
        endpoint = f"{place.name}_{number}".replace(".", "_")
        blueprint.add_url_rule(path, endpoint, functools.partial(answer, place), **rule)
    for number, beginning in enumerate(endpoints.below):
        blueprint.add_url_rule(f"{beginning}<path:name>", f"by_name_{number}", by_name, **rule)
    return blueprint


def request_key(key: Key) -> Callable[..., str | None]:
    """Make the key of a limiter around a view of Flask's request.

    For example: `@RateLimiter("10/minute", key=request_key(client_address()))`.

    Args:
        key: makes the key; None from it lets the call in uncounted.

    Returns:
        A function for `RateLimiter(key=...)`, of any arguments.

    Raises:
        TypeError: *key* is no ordinary function.
        RuntimeError: from the function, where there is no request.
    """
    checked = key_of(params.callback("key", key))

    def of_current_request(*_args: Any, **_kwargs: Any) -> str | None:
        return checked(_Request(request.environ, believed(request.environ)))

    return of_current_request


class _Request(WsgiRequest):
    __slots__ = ()

    @property
    def route(self) -> str:
        """The rule by which Flask has found the view."""
        return request.url_rule.rule if request.url_rule is not None else self.path
