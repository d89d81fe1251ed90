"""The orders service on Django, in one file.

python -m examples.frameworks.django_app runserver --noreload
python -m uvicorn examples.frameworks.django_app:asgi
"""

from __future__ import annotations

import sys

# Django has no types.
# mypy: disable-error-code="import-untyped, untyped-decorator"
import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.management import execute_from_command_line
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.http import require_POST

from examples.frameworks.warehouse import WarehouseError, stock_of
from resilient import Bulkhead, Gradient, RateLimiter, current_priority
from resilient.integrations.django import request_key
from resilient.wsgi import Maintenance, api_key, requested_priority

maintenance = Maintenance("<h1>Back soon</h1>")
orders = RateLimiter("3/minute", name="orders", key=request_key(api_key()))
frontend = Bulkhead("frontend", Gradient(), max_wait=0.2, priority=current_priority)

settings.configure(
    SECRET_KEY="not a secret: for the example",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    WSGI_APPLICATION=f"{__name__}.wsgi",
    MIDDLEWARE=[
        "resilient.integrations.django.ResilienceMiddleware",
        "django.middleware.common.CommonMiddleware",
    ],
    RESILIENT={
        "rate_limit": "100/minute",
        "shed": frontend,
        "priority": requested_priority(),
        "deadline": 10,
        "maintenance": maintenance,
    },
)
django.setup()


@require_POST
@orders
def order(request: HttpRequest) -> JsonResponse:
    """Take an order: so many from each API key, and within the limit of the whole service."""
    return JsonResponse({"status": "taken"})


def stock(request: HttpRequest, item: str) -> JsonResponse:
    """Ask the warehouse; when its circuit is open, nobody waits for it and clients get 503."""
    try:
        return JsonResponse({"stock": stock_of(item)})
    except WarehouseError:
        return JsonResponse({"detail": "The warehouse does not answer."}, status=502)


urlpatterns = [path("orders", order), path("stock/<item>", stock)]
asgi = get_asgi_application()
wsgi = get_wsgi_application()

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
