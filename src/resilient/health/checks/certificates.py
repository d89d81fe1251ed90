"""When a certificate ends. The standard library reads only those that it trusts."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

__all__ = ["expiry_of"]

_SEQUENCE: Final = 0x30
_EXPLICIT_VERSION: Final = 0xA0
_UTC_TIME: Final = 0x17
_GENERALIZED_TIME: Final = 0x18
_LONG: Final = 0x80
_LONGEST_LENGTH: Final = 4  # bytes
_BEFORE_VALIDITY: Final = 3  # serial number, algorithm, issuer


def expiry_of(certificate: bytes) -> datetime:
    """Return when a certificate in DER ends, in UTC.

    Raises:
        ValueError: this is none.

    Source: RFC 5280, 4.1: Certificate { TBSCertificate { [0] version, serialNumber, signature, issuer,
        Validity { notBefore, notAfter } ...
    """
    body = _inside(_inside(certificate, 0, _SEQUENCE), 0, _SEQUENCE)
    at = 0
    if body[:1] == bytes((_EXPLICIT_VERSION,)):
        at = _element(body, at)[2]
    for _ in range(_BEFORE_VALIDITY):
        at = _element(body, at)[2]
    validity = _inside(body, at, _SEQUENCE)
    tag, content, _ = _element(validity, _element(validity, 0)[2])
    text = content.decode("ascii", "replace")
    if tag == _GENERALIZED_TIME:
        return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
    if tag != _UTC_TIME:
        raise ValueError(f"a time of kind {tag:#x}")
    # Two digits: from 1950 to 2049. Python's own rule is another one.
    century = "19" if text[:1] >= "5" else "20"
    return datetime.strptime(century + text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _inside(data: bytes, at: int, expected: int) -> bytes:
    tag, content, _ = _element(data, at)
    if tag != expected:
        raise ValueError(f"not the certificate it should be: {tag:#x} at {at}")
    return content


def _element(data: bytes, at: int) -> tuple[int, bytes, int]:
    """Return the tag and the content of what is at *at*, and where the next one begins."""
    if len(data) < at + 2:
        raise ValueError("the certificate is cut off")
    tag, length, at = data[at], data[at + 1], at + 2
    if length & _LONG:
        size = length & ~_LONG
        if not 0 < size <= _LONGEST_LENGTH:
            raise ValueError(f"a length of {size} bytes")
        length, at = int.from_bytes(data[at : at + size]), at + size
    if len(data) < at + length:
        raise ValueError("the certificate is cut off")
    return tag, data[at : at + length], at + length
