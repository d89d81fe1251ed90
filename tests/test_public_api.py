"""The public API: what there is, how it is called, and that its documentation is whole.

`tests/data/public_api.txt` holds every public name with its signature. A change of it is a change that users
see: make it on purpose, with `RESILIENT_UPDATE_API=1 pytest tests/test_public_api.py`, and tell it in the
changelog.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.metadata
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import redis

import resilient
import resilient.typing
from resilient import errors, events, health, pool, telemetry, testing
from resilient.engine.policy import Policy

ROOT = Path(__file__).parents[1]
SNAPSHOT = ROOT / "tests" / "data" / "public_api.txt"
MODULES = (resilient, errors, events, health, pool, telemetry, testing, resilient.typing)

# What the engine and other policies ask of these: public by name within the package, and none of a user's
# business. Anything that is not listed here is API.
PLUMBING = {
    "Policy": {"wrap"},
    "Fallback": {"takes", "answer", "aanswer", "after_fork"},
    "Quota": {"share"},
    "RateLimiter": {"after_fork"},
    "Retry": {"limit", "begin", "after_fork"},
    "RetryBudget": {"enrol", "withdraw", "refund", "after_fork"},
    "AdaptiveLimit": {"bounded", "drop_after", "open"},
    "Bulkhead": {"after_fork"},
    "CPU": {"after_fork"},
    "Endpoints": {"claims", "find", "places", "below", "respond", "arespond"},
    "EventLoopLag": {"after_fork", "offer_loop"},
    "Health": {"after_fork"},
    "MemoryGrowth": {"after_fork"},
    "Pressure": {"factor", "meter"},
    "Recorder": {"after_fork", "span"},
    "SieveCache": {"keep", "drop", "after_fork"},
    "wait_full_jitter": {"longest_total"},
    "wait_equal_jitter": {"longest_total"},
    "wait_decorrelated_jitter": {"longest_total"},
}

# For each class whose constructor validates: arguments that it takes.
VALID: dict[str, dict[str, Any]] = {
    "AIMD": {},
    "AdaptiveThrottle": {"name": "t"},
    "Bulkhead": {"name": "b", "limit": 1},
    "Cache": {"name": "c", "ttl": 1.0},
    "AsyncConnectionPool": {"connect": object, "name": "p"},
    "ConnectionPool": {"connect": object, "name": "p"},
    "AsyncReplicaSet": {"primary": resilient.AsyncConnectionPool(object, name="p"), "replicas": []},
    "ReplicaSet": {"primary": resilient.ConnectionPool(object, name="p"), "replicas": []},
    "CPU": {},
    "Calls": {"count": 10},
    "CircuitBreaker": {"name": "b"},
    "ContainerMemory": {},
    "DNSName": {"host": "localhost"},
    "Database": {"source": lambda: None},
    "DiskSpace": {"path": "/"},
    "Endpoints": {"health": health.Health("shop")},
    "EventLoopLag": {},
    "Fallback": {"handler": 0},
    "FileDescriptors": {},
    "HTTPEndpoint": {"url": "http://localhost/"},
    "Health": {"service": "shop"},
    "MemoryGrowth": {},
    "Recorder": {},
    "RedisServer": {"client": redis.Redis()},
    "TCPPort": {"host": "localhost", "port": 1},
    "TLSCertificate": {"host": "localhost"},
    "Threads": {},
    "FakeClock": {},
    "Gradient": {},
    "Pipeline": {},
    "Pressure": {},
    "RateLimiter": {"rate": "1/second"},
    "Retry": {"on": OSError},
    "RetryBudget": {},
    "SieveCache": {"maxsize": 10},
    "Timeout": {"seconds": 1.0},
    "Vegas": {},
    "wait_decorrelated_jitter": {},
    "wait_equal_jitter": {},
    "wait_full_jitter": {},
    "stop_at_deadline": {},
    "wait_retry_after": {},
    "priority": {"level": "critical"},
}
POLICIES = {"Pipeline": (resilient.Timeout(1.0),)}


def exported() -> dict[str, Any]:
    """Return every public object by the shortest name it can be imported by."""
    found: dict[str, Any] = {}
    for module in MODULES:
        for name in module.__all__:
            known = any(getattr(module, name) is value for value in found.values())
            if not known or inspect.ismodule(getattr(module, name)):
                found[f"{module.__name__}.{name}"] = getattr(module, name)
    return found


EXPORTED = exported()
CLASSES = {name: value for name, value in EXPORTED.items() if inspect.isclass(value)}
FUNCTIONS = {name: value for name, value in EXPORTED.items() if inspect.isfunction(value)}


def doc(thing: Any) -> str:
    return inspect.getdoc(thing) or ""


def is_event(cls: type) -> bool:
    return issubclass(cls, events.Event)


def is_constructed(cls: type) -> bool:
    """Tell whether *cls* has a constructor of its own, or one of a base that is not public."""
    if is_protocol(cls):
        return False
    owner = next(base for base in cls.__mro__ if "__init__" in vars(base))
    return owner is cls or (
        owner.__module__.startswith(("resilient.pool", "resilient.health")) and owner not in EXPORTED.values()
    )


def is_protocol(cls: type) -> bool:
    """Tell whether *cls* says what others have to have, and is made by nobody."""
    return bool(getattr(cls, "_is_protocol", False))


def is_record(cls: type) -> bool:
    """Tell whether users read *cls*, and never make one."""
    return dataclasses.is_dataclass(cls) and "Attributes:" in doc(cls)


def is_public_kind(cls: type) -> bool:
    return issubclass(cls, (events.Event, errors.ResilientError, Policy)) and not cls.__name__.startswith("_")


def is_error(cls: type) -> bool:
    return issubclass(cls, BaseException)


def members(cls: type) -> dict[str, Any]:
    """Return the public methods and properties of *cls* that are ours."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("resilient"):
            own = {name: member for name, member in vars(base).items() if is_member(name, member)}
            found |= {name: own[name] for name in own if name not in PLUMBING.get(base.__name__, ())}
    plumbing = set().union(*(PLUMBING.get(base.__name__, set()) for base in cls.__mro__))
    return {name: member for name, member in found.items() if name not in plumbing}


def is_member(name: str, member: Any) -> bool:
    kinds = (property, classmethod, staticmethod)
    return not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, kinds))


def callables() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield every public function, constructor and method with its name."""
    yield from FUNCTIONS.items()
    for name, cls in CLASSES.items():
        if is_constructed(cls) and not is_event(cls) and not is_record(cls):
            yield name, cls
        for member_name, member in members(cls).items():
            if not isinstance(member, property):
                yield f"{name}.{member_name}", getattr(member, "__func__", member)


CALLABLES = dict(callables())


def section(text: str, title: str) -> str:
    """Return what a docstring says under *title*, "" where it has no such section."""
    match = re.search(rf"^{title}:(.*?)(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    return match[1] if match else ""


def parameters(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name not in {"self", "cls"}]


class TestNames:
    @pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
    def test_all_is_sorted_and_complete(self, module: ModuleType):
        """`__all__` names things once, in order, and leaves out no error, event or policy of the module's."""
        names = module.__all__
        assert names == sorted(set(names), key=lambda name: (not (len(name) > 1 and name.isupper()), name))
        own = {
            name
            for name, value in vars(module).items()
            if inspect.isclass(value) and value.__module__ == module.__name__ and is_public_kind(value)
        }
        assert own <= set(names)

    def test_every_policy_is_exported(self):
        """Every policy is one import away; what `deadline()` returns is made by it alone."""
        policies, found = [Policy], set()
        while policies:
            policies += (subclasses := policies.pop().__subclasses__())
            found |= {cls.__name__ for cls in subclasses if cls.__module__.startswith("resilient.")}
        public = {name for name in found if not name.startswith("_")}
        assert public - {"Deadline"} <= set(resilient.__all__)

    def test_what_the_package_exports_is_all_it_shows(self):
        """`vars(resilient)` has no public name beside `__all__`, its subpackages and what it works with."""
        tools = {"annotations", "importlib", "TYPE_CHECKING"}
        stray = (
            {name for name in vars(resilient) if not name.startswith("_")} - set(resilient.__all__) - tools
        )
        assert {f"resilient.{name}" for name in stray} <= sys.modules.keys()

    def test_what_is_loaded_later_is_there(self):
        """`dir()` shows what is loaded when it is asked for, and nothing else is made up."""
        assert set(resilient.__all__) <= set(dir(resilient))
        with pytest.raises(AttributeError, match="module 'resilient' has no attribute 'bulkhead_of'"):
            _ = resilient.bulkhead_of

    def test_every_error_can_be_imported_from_the_top(self):
        """What users catch is one import away."""
        assert set(errors.__all__) <= set(resilient.__all__)

    def test_version_is_that_of_the_distribution(self):
        """A bug report names the version that is installed."""
        assert resilient.__version__ == importlib.metadata.version("resilient-py")


class TestDocstrings:
    @pytest.mark.parametrize("name", sorted({*CLASSES, *CALLABLES}))
    def test_opens_with_one_sentence(self, name):
        """Everything public has a docstring, and its first paragraph is a sentence."""
        text = doc(EXPORTED.get(name) or CALLABLES[name])
        first = text.partition("\n\n")[0]
        assert first.endswith("."), f"{name}: {first!r}"
        assert first[0].isupper()

    @pytest.mark.parametrize("name", sorted(CALLABLES))
    def test_args_are_exactly_the_parameters(self, name):
        """`Args:` names every parameter, in order, and nothing else."""
        function = CALLABLES[name]
        elsewhere = re.search(r"arguments are\s+those of `(\w+)`", doc(function))
        text = doc(getattr(resilient, elsewhere[1]) if elsewhere else function)
        documented = re.findall(r"^    \*{0,2}(\w+):", section(text, "Args"), re.MULTILINE)
        assert documented == parameters(function), name

    @pytest.mark.parametrize("name", sorted(CALLABLES))
    def test_returns_are_told(self, name):
        """A function that returns something says what, in its first sentence or under `Returns:`."""
        function = CALLABLES[name]
        if inspect.isclass(function) or inspect.signature(function).return_annotation in {"None", None}:
            return
        text = doc(function)
        assert section(text, "Returns") or re.match(r"(Return|Yield|Make|Iterate)\b", text), name

    @pytest.mark.parametrize("name", sorted(CLASSES))
    def test_properties_are_documented(self, name):
        """Every public property says what it is."""
        for member_name, member in members(CLASSES[name]).items():
            if isinstance(member, property):
                assert doc(member), f"{name}.{member_name}"

    @pytest.mark.parametrize("name", sorted(name for name in CLASSES if not is_event(CLASSES[name])))
    def test_classes_tell_of_concurrency(self, name):
        """Every class that lives longer than one call says who may use it at once."""
        if not is_error(CLASSES[name]) and not is_record(CLASSES[name]):
            assert section(doc(CLASSES[name]), "Concurrency").strip(), name

    @pytest.mark.parametrize("name", sorted(name for name in CLASSES if is_event(CLASSES[name])))
    def test_events_tell_of_each_field(self, name):
        """The docstring of an event, or a note at the field, says what each of its own fields is."""
        cls = CLASSES[name]
        text = doc(cls) + inspect.getsource(cls)
        own = inspect.get_annotations(cls).keys() & {field.name for field in dataclasses.fields(cls)}
        own -= {"policy", "error", "reason"}  # the same for all: told once, by the base and the module
        missing = [f for f in own if f"*{f}*" not in text and not re.search(rf'{f}: .*\n\s+"""', text)]
        assert not missing, name

    @pytest.mark.parametrize("name", sorted(name for name in CLASSES if is_record(CLASSES[name])))
    def test_records_tell_of_each_field(self, name):
        """Each attribute that a snapshot has is in its docstring, in the same order, and no other."""
        told = re.findall(r"^\s+(\w+(?:, \w+)*):", section(doc(CLASSES[name]), "Attributes"), re.MULTILINE)
        fields = [field.name for field in dataclasses.fields(CLASSES[name])]
        assert [one for names in told for one in names.split(", ")] == fields

    @pytest.mark.parametrize("name", sorted(VALID))
    def test_raises_are_what_the_constructor_raises(self, name):
        """Each argument of the wrong type is refused, with an error that the docstring names."""
        cls = next(
            getattr(module, name)
            for module in (resilient, testing, health, telemetry)
            if hasattr(module, name)
        )
        raises = section(doc(cls), "Raises")
        cls(*POLICIES.get(name, ()), **VALID[name])
        refusals = {parameter: refusal(cls, VALID[name], parameter) for parameter in parameters(cls)}
        undocumented = {p: error for p, error in refusals.items() if error and f"{error}:" not in raises}
        assert not undocumented
        assert any(refusals.values())

    def test_every_constructor_that_takes_arguments_is_tried(self):
        """No class escapes the test above."""
        constructors = {
            name.rpartition(".")[2]
            for name, value in CALLABLES.items()
            if inspect.isclass(value) and not is_error(value) and parameters(value)
        }
        assert constructors <= set(VALID)


class Nonsense:
    """A value of no type that anything takes."""


def refusal(cls: type, valid: dict[str, Any], parameter: str) -> str | None:
    """Return the name of the error that *cls* refuses nonsense for *parameter* with."""
    args, kwargs = POLICIES.get(cls.__name__, ()), {**valid, parameter: Nonsense()}
    if inspect.signature(cls).parameters[parameter].kind is inspect.Parameter.VAR_POSITIONAL:
        args, kwargs = (Nonsense(),), valid
    try:
        cls(*args, **kwargs)
    except (TypeError, ValueError) as exc:
        return type(exc).__name__
    return None


class TestSignatures:
    def test_are_those_on_file(self):
        """The API is the one on file. Update the file on purpose, as this module's docstring tells."""
        now = "".join(f"{line}\n" for line in snapshot())
        if os.environ.get("RESILIENT_UPDATE_API"):
            SNAPSHOT.parent.mkdir(exist_ok=True)
            SNAPSHOT.write_text(now, encoding="utf-8")
        on_file = SNAPSHOT.read_text(encoding="utf-8")
        changes = difflib.unified_diff(
            on_file.splitlines(), now.splitlines(), "on file", "now", lineterm="", n=0
        )
        assert on_file == now, "\n".join(changes)

    def test_options_are_keywords(self):
        """A policy takes at most its name, or what it is about, by position: options can be added freely."""
        both = {resilient.Bulkhead}  # a limit has no meaning without its name, and no name but `limit`
        for name, cls in CLASSES.items():
            if issubclass(cls, Policy):
                kinds = [parameter.kind for parameter in inspect.signature(cls).parameters.values()]
                assert kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD) <= 1 + (cls in both), name


def snapshot() -> Iterator[str]:
    """Yield a line for each public name."""
    for name, value in sorted(EXPORTED.items()):
        if inspect.isclass(value) and issubclass(value, Enum):
            yield f"class {name}{_bases(value)}: {', '.join(f'{each.name} = {each.value}' for each in value)}"
        elif inspect.isclass(value):
            inherited = not (inspect.isfunction(value.__init__) or issubclass(value, BaseException | tuple))
            yield f"class {name}{_bases(value)}{'' if inherited else _signature(value)}"
            for member_name, member in sorted(members(value).items()):
                yield f"    {_member(value, member_name, member)}"
        elif inspect.isfunction(value):
            yield f"{name}{_signature(value)}"
        elif inspect.ismodule(value):
            yield f"module {name}"
        else:
            yield f"{name} (an alias)"


def _bases(cls: type) -> str:
    return "[" + ", ".join(base.__name__ for base in cls.__bases__ if base is not object) + "]"


def _member(cls: type, name: str, member: Any) -> str:
    if isinstance(member, property):
        settable = " (can be set)" if member.fset else ""
        if not inspect.isfunction(member.fget):  # read in C, and annotated in the class
            return f"{name}: {cls.__annotations__[name]}{settable}"
        return f"{name}: {inspect.signature(member.fget).return_annotation}{settable}"
    prefix = {classmethod: "classmethod ", staticmethod: "staticmethod "}.get(type(member), "")
    if inspect.iscoroutinefunction(member):
        prefix += "async "
    return f"{prefix}{name}{_signature(getattr(member, '__func__', member))}"


def _signature(function: Callable[..., Any]) -> str:
    """Return the signature with defaults that read the same on every machine and Python."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # an exception that takes what its base in C takes
        return "(*args)"
    kept = [
        parameter.replace(annotation=_told(parameter.annotation), default=_told(parameter.default, repr))
        for parameter in signature.parameters.values()
    ]
    returned = _told(signature.return_annotation)
    return str(signature.replace(parameters=kept, return_annotation=returned))


class _Told:
    """Prints as *text*, and nothing else."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _told(value: Any, write: Callable[[Any], str] = str) -> Any:
    if value is inspect.Parameter.empty:
        return value
    # A named tuple's annotations are kept as references.
    name = getattr(value, "__qualname__", None) or getattr(value, "__forward_arg__", None)
    return _Told(name or write(value))


class TestDocs:
    @pytest.mark.parametrize("cls", [cls for cls in CLASSES.values() if issubclass(cls, Policy)])
    def test_every_policy_has_a_page(self, cls):
        """Each policy has a page on the template, and the page's example imports it from `resilient`."""
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", cls.__name__).lower()
        page = ROOT / "docs" / "policies" / f"{words}.md"
        text = page.read_text(encoding="utf-8")
        assert re.search(rf"from resilient import .*\b{cls.__name__}\b", text)
        for heading in ("About", "Usage", "Defaults", "Telemetry", "Patterns", "Anti-patterns", "Sources"):
            assert f"## {heading}" in text, f"{page.name} has no section {heading}"

    def test_every_name_is_in_the_reference(self):
        """What can be imported can be looked up."""
        pages = (ROOT / "docs" / "reference").glob("*.md")
        reference = "".join(page.read_text(encoding="utf-8") for page in pages)
        modules = set(re.findall(r"^::: (\S+)", reference, re.MULTILINE))
        documented = {name for name in EXPORTED if name in modules or name.rpartition(".")[0] in modules}
        missing = {
            name for name, value in EXPORTED.items() if name not in documented and not inspect.ismodule(value)
        }
        errors_on_their_page = {
            f"resilient.{name}" for name in errors.__all__ if "resilient.errors" in modules
        }
        assert (
            not missing - errors_on_their_page - {f"resilient.typing.{n}" for n in resilient.typing.__all__}
        )
