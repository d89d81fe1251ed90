"""What each form of a health report looks like, as its specification says."""

from __future__ import annotations

from typing import Any, Final

from jsonschema import Draft202012Validator

_DRAFT_STATUS: Final = {"enum": ["pass", "warn", "fail"]}
_INSTANT: Final = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$"}

_HEALTH_JSON: Final[dict[str, Any]] = {
    "$comment": "draft-inadarei-api-health-check-06, sections 3 and 4",
    "type": "object",
    "required": ["status"],
    "properties": {
        "status": _DRAFT_STATUS,
        "version": {"type": "string"},
        "releaseId": {"type": "string"},
        "notes": {"type": "array", "items": {"type": "string"}},
        "output": {"type": "string"},
        "serviceId": {"type": "string"},
        "description": {"type": "string"},
        "links": {"type": "object"},
        "time": _INSTANT,
        "unknown": {"const": True},
        "checks": {
            "type": "object",
            "propertyNames": {"pattern": "^[^:]+:[^:]+$"},
            "additionalProperties": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "required": ["componentType", "status"],
                    "properties": {
                        "componentId": {"type": "string"},
                        "componentType": {"enum": ["component", "datastore", "system"]},
                        "observedValue": {"type": "number"},
                        "observedUnit": {"type": "string"},
                        "status": _DRAFT_STATUS,
                        "affectedEndpoints": {"type": "array"},
                        "time": _INSTANT,
                        "output": {"type": "string"},
                        "links": {"type": "object"},
                    },
                    "dependentRequired": {"observedUnit": ["observedValue"]},
                    # "This field SHOULD be omitted for 'pass' state."
                    "if": {"properties": {"status": {"const": "pass"}}},
                    "then": {"not": {"required": ["output"]}},
                },
            },
        },
    },
    "additionalProperties": False,
}

_SPRING_STATUS: Final = {"enum": ["UP", "DOWN", "OUT_OF_SERVICE", "UNKNOWN"]}

_SPRING: Final[dict[str, Any]] = {
    "$comment": "Spring Boot 3, actuator/health: application/vnd.spring-boot.actuator.v3+json",
    "type": "object",
    "required": ["status"],
    "properties": {
        "status": _SPRING_STATUS,
        "groups": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
        "components": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "required": ["status"],
                "properties": {"status": _SPRING_STATUS, "details": {"type": "object", "minProperties": 1}},
                "additionalProperties": False,
            },
        },
    },
    "additionalProperties": False,
}

_UP_OR_DOWN: Final = {"enum": ["UP", "DOWN"]}

_MICROPROFILE: Final[dict[str, Any]] = {
    "$comment": "Eclipse MicroProfile Health 4.0, appendix A",
    "type": "object",
    "required": ["status", "checks"],
    "properties": {
        "status": _UP_OR_DOWN,
        "checks": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "status"],
                "properties": {
                    "name": {"type": "string"},
                    "status": _UP_OR_DOWN,
                    "data": {
                        "type": "object",
                        "additionalProperties": {"type": ["string", "boolean", "number", "null"]},
                    },
                },
                "additionalProperties": False,
            },
        },
    },
    "additionalProperties": False,
}

VERBOSE: Final = (
    r"(\[[+-]\][^\n]+ (ok|failed|unknown)(: [^\n]+)?\n)*[^\n]+ check (passed|failed)(: [^\n]+)?\n"
)
"""What kube-apiserver writes for `?verbose`, and what our warnings add to it."""

HEALTH_JSON: Final = Draft202012Validator(_HEALTH_JSON)
SPRING: Final = Draft202012Validator(_SPRING)
MICROPROFILE: Final = Draft202012Validator(_MICROPROFILE)


def valid(document: Any, schema: Draft202012Validator) -> None:
    """Refuse what is not as *schema* has it.

    Raises:
        jsonschema.ValidationError: it is not.
    """
    schema.validate(document)
