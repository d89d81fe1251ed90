"""The orders service on FastAPI.

python -m uvicorn examples.frameworks.fastapi_app:app
"""

from __future__ import annotations

from fastapi import Depends, FastAPI, HTTPException

from examples.frameworks.warehouse import WarehouseError, stock_of
from resilient import Bulkhead, Gradient, current_priority
from resilient.asgi import Maintenance, api_key, requested_priority
from resilient.integrations.fastapi import RESPONSES, install, rate_limit

maintenance = Maintenance("<h1>Back soon</h1>")
frontend = Bulkhead("frontend", Gradient(), max_wait=0.2, priority=current_priority)

app = FastAPI(title="Orders", responses=RESPONSES)
install(
    app,
    rate_limit="100/minute",
    shed=frontend,
    priority=requested_priority(),
    deadline=10,
    maintenance=maintenance,
)


@app.post("/orders", dependencies=[Depends(rate_limit("3/minute", key=api_key()))])
async def order() -> dict[str, str]:
    """Take an order: so many from each API key, and within the limit of the whole service."""
    return {"status": "taken"}


@app.get("/stock/{item}")
def stock(item: str) -> dict[str, int]:
    """Ask the warehouse; when its circuit is open, nobody waits for it and clients get 503."""
    try:
        return {"stock": stock_of(item)}
    except WarehouseError as error:
        raise HTTPException(502, "The warehouse does not answer.") from error
