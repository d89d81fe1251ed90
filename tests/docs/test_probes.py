"""What readers copy into their manifests restarts no process because of somebody else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import pytest
from tests.docs.pages import WITH_CODE, name, tokens

PROBE = "livenessProbe"
ASKED = re.compile(
    r"""path:\ *([\w/]+) | service:\ *(\w+) | --url",\ *"https?://[\w.:]+(/\w*) | --file",\ *"[\w/]*/(\w+)""",
    re.VERBOSE,
)
WRITTEN = re.compile(r"health\.write\(([^)]*)\)")
PATH = re.compile(r"(\w+)\", group=\"(\w+)\"")
WITH_PROBES = [page for page in WITH_CODE if f"{PROBE}:" in page.read_text()]


def probes(manifest: str) -> Iterator[str]:
    """Return the words of each liveness probe in a manifest: what stands deeper than its name."""
    lines = manifest.splitlines()
    for number, line in enumerate(lines):
        if line.lstrip().startswith(f"{PROBE}:"):
            depth = len(line) - len(line.lstrip())
            below = takewhile(lambda one, depth=depth: one[: depth + 1].isspace(), lines[number + 1 :])
            yield "\n".join([line, *below])


def asked_by(probe: str) -> str:
    """Return the path, the service, or the name of the file, that a probe asks for."""
    found = ASKED.search(probe)
    assert found is not None, probe
    return next(filter(None, found.groups()))


@pytest.mark.parametrize("page", WITH_PROBES, ids=name)
def test_liveness_probes_ask_for_liveness(page: Path) -> None:
    """An outage of a database would otherwise kill all that could still have served something."""
    blocks = [one.content for one in tokens(page.read_text()) if one.type == "fence" and one.info == "yaml"]
    asked = [asked_by(probe) for block in blocks for probe in probes(block)]

    assert asked
    assert set(asked) <= {"/livez", "liveness", "live"}


def test_probe_on_anything_else_is_seen() -> None:
    """Whatever stands beside it."""
    manifest = """
    livenessProbe:
      exec:
        command: ["resilient", "health", "--file", "/run/worker/ready"]
    readinessProbe:
      httpGet: { path: /livez }
    livenessProbe: { httpGet: { path: /health, port: http } }
    """

    assert [asked_by(probe) for probe in probes(manifest)] == ["ready", "/health"]


def test_probes_are_found() -> None:
    """By HTTP, by gRPC, and by a command."""
    assert {page.name for page in WITH_PROBES} >= {"health-endpoints.md", "grpc.md", "cli.md"}


@pytest.mark.parametrize("page", WITH_CODE, ids=name)
def test_files_say_which_group_they_tell(page: Path) -> None:
    """And are called as it, so that a probe cannot read the wrong one."""
    for words in WRITTEN.findall(page.read_text()):
        assert "group=" in words
        assert all(file == group for file, group in PATH.findall(words)), words
