"""What gunicorn reads as its configuration in `test_drain_servers.py`."""

from tests.health.drained import DELAY

from resilient.integrations.gunicorn import draining

post_worker_init = draining("tests.health.drained:health", DELAY)
