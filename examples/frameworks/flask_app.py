"""The orders service on Flask.

python -m flask --app examples.frameworks.flask_app run
"""

from __future__ import annotations

from flask import Flask

from examples.frameworks.warehouse import WarehouseError, stock_of
from resilient import Bulkhead, Gradient, RateLimiter, current_priority
from resilient.integrations.flask import Resilience, request_key
from resilient.wsgi import Maintenance, api_key, requested_priority

maintenance = Maintenance("<h1>Back soon</h1>")
orders = RateLimiter("3/minute", name="orders", key=request_key(api_key()))
frontend = Bulkhead("frontend", Gradient(), max_wait=0.2, priority=current_priority)
resilience = Resilience(
    rate_limit="100/minute",
    shed=frontend,
    priority=requested_priority(),
    deadline=10,
    maintenance=maintenance,
)


def create_app() -> Flask:
    """Make the app; what it is guarded by may be overruled by RESILIENT_* in the environment."""
    app = Flask("orders")
    app.config.from_prefixed_env()
    app.add_url_rule("/orders", view_func=order, methods=["POST"])
    app.add_url_rule("/stock/<item>", view_func=stock)
    resilience.init_app(app)
    return app


@orders
def order() -> dict[str, str]:
    """Take an order: so many from each API key, and within the limit of the whole service."""
    return {"status": "taken"}


def stock(item: str) -> tuple[dict[str, int | str], int]:
    """Ask the warehouse; when its circuit is open, nobody waits for it and clients get 503."""
    try:
        return {"stock": stock_of(item)}, 200
    except WarehouseError:
        return {"detail": "The warehouse does not answer."}, 502
