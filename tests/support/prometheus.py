"""A Prometheus of a test's own, which scrapes an app over loopback; Debian has it in `prometheus`."""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

from tests.support.server import ServerProcess

BINARY = shutil.which("prometheus")
"""Where the program is; None where it is not installed."""


class PrometheusServer(ServerProcess):
    """Scrape *target* ("host:port") several times a second, and go by *rules*: files and what is in them."""

    def __init__(self, target: str, rules: Mapping[str, str]) -> None:
        super().__init__()
        assert BINARY is not None
        self._binary = BINARY
        config = {
            "global": {"scrape_interval": "250ms", "scrape_timeout": "250ms", "evaluation_interval": "500ms"},
            "rule_files": [f"{name}.yaml" for name in rules],
            "scrape_configs": [{"job_name": "shop", "static_configs": [{"targets": [target]}]}],
        }
        (self.directory / "prometheus.json").write_text(json.dumps(config))  # which is YAML, too
        for name, text in rules.items():
            (self.directory / f"{name}.yaml").write_text(text)

    def ask(self, what: str, **parameters: str) -> Any:
        """Return what its API answers, as data.

        Raises:
            OSError: it does not answer, or refuses.
        """
        query = urllib.parse.urlencode(parameters)
        url = f"http://{self.host}:{self.port}/api/v1/{what}?{query}"
        with urllib.request.urlopen(url, timeout=5.0) as response:
            return json.load(response)["data"]

    def query(self, query: str) -> dict[str, float]:
        """Return the value of each series that *query* comes to, by its labels: `k="v"`, in order."""
        return {
            ",".join(f'{key}="{value}"' for key, value in sorted(one["metric"].items())): float(
                one["value"][1]
            )
            for one in self.ask("query", query=query)["result"]
        }

    def _command(self) -> list[str]:
        return [
            self._binary,
            "--config.file=prometheus.json",
            f"--web.listen-address={self.host}:{self.port}",
            "--storage.tsdb.path=data",
        ]

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.host}:{self.port}/-/ready", timeout=1.0):
                return True
        except OSError:
            return False
