"""What is on the network: a port that is open, a name that is known, a certificate that is good."""

from __future__ import annotations

import math
import socket
import ssl
import time
from collections.abc import Collection
from datetime import datetime
from typing import ClassVar, Final

from ...engine import params
from ...engine.finding import Fact, Finding, Status
from ...pool.drivers.base import cut
from ...typing import Clock, Seconds
from .base import Check, Watchdog, duration, in_time, reason, seconds_of
from .certificates import expiry_of

__all__ = ["DNSName", "TCPPort", "TLSCertificate", "connected", "port_of"]

_MOST_PORTS: Final = 65_535
_DAY: Final = 86_400.0
_LEAST: Final = 0.001


class TCPPort(Check):
    """Tell whether somebody accepts connections on a port; the connection is closed at once.

    Args:
        host: name or address.
        port: from 1 to 65535.
        timeout: seconds above 0 to connect, to all addresses of the host together; finding them takes as long
            as the system needs.
        name: in reports. None: host and port.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Concurrency: safe from any thread, which it blocks.
    """

    external: ClassVar[bool] = True

    def __init__(self, host: str, port: int, *, timeout: Seconds = 1.0, name: str | None = None) -> None:
        self._host = params.named("host", host)
        self._port = port_of(port)
        self._timeout = seconds_of(timeout)
        super().__init__(f"tcp:{host}:{port}" if name is None else name)

    def __call__(self) -> Finding:
        """Connect.

        Returns:
            The seconds it took; a failure, with the reason, where nobody accepts.
        """
        begun, seconds = time.perf_counter(), in_time(self._timeout)
        try:
            connected(self._host, self._port, seconds).close()
        except OSError as exc:
            return _no_connection(exc, self._host, self._port, seconds)
        return Finding(Status.PASS, "", round(time.perf_counter() - begun, 6), "s")

    def _subject(self) -> str:
        return f"{self._host}:{self._port}"


class DNSName(Check):
    """Tell whether a name has an address.

    Args:
        host: the name.
        expected: an address, or several, that must be among those it has. None: any will do.
        slow_after: seconds above 0 that it may take, or it warns. None: any time.
        name: in reports. None: that of the host.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Concurrency: safe from any thread, which it blocks for as long as the system's resolver does: nobody can
        tell that to give up. Its `resolv.conf` says when it does.
    """

    external: ClassVar[bool] = True

    def __init__(
        self,
        host: str,
        expected: str | Collection[str] | None = None,
        *,
        slow_after: Seconds | None = 0.5,
        name: str | None = None,
    ) -> None:
        self._host = params.named("host", host)
        wanted = (expected,) if isinstance(expected, str) else () if expected is None else tuple(expected)
        self._expected = tuple(params.named("expected", address) for address in wanted)
        self._slow_after = params.optional_seconds("slow_after", slow_after)
        super().__init__(f"dns:{host}" if name is None else name)

    def __call__(self) -> Finding:
        """Look the name up.

        Returns:
            The seconds it took, and the addresses. It fails where there is none, or not those expected.
        """
        begun = time.perf_counter()
        try:
            found = socket.getaddrinfo(self._host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as exc:
            return Finding(Status.FAIL, f"{self._host} is not known: {reason(exc)}")
        took = time.perf_counter() - begun
        addresses = sorted({str(one[4][0]) for one in found})
        facts: dict[str, Fact] = {"addresses": ", ".join(addresses)}
        missing = [address for address in self._expected if address not in addresses]
        status, told = Status.PASS, ""
        if missing:
            status = Status.FAIL
            told = f"{self._host} is {', '.join(addresses)}, and should be {', '.join(missing)}"
        elif self._slow_after is not None and took >= self._slow_after:
            status, told = Status.WARN, f"it took {duration(took)} to find {self._host}"
        return Finding(status, told, round(took, 6), "s", facts)

    def _subject(self) -> str:
        return self._host


class TLSCertificate(Check):
    """Tell for how long a server's certificate is still good, and whether clients trust it.

    Of one that is not trusted, the end is told too: both may have to be mended.

    Args:
        host: the server; the certificate must be for this name.
        port: on which it speaks TLS at once, from 1 to 65535.
        warn_days: days before the end, 0 or more, from which on it warns.
        fail_days: the same for a failure; at most *warn_days*.
        cafile: a file with the certificates of those who are trusted. None: whom the system trusts.
        timeout: seconds above 0 for each of at most two connections.
        name: in reports. None: host and port.
        clock: tells the time in seconds since 1970.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or does not go with another one.
        OSError: *cafile* cannot be read.

    Concurrency: safe from any thread, which it blocks.
    """

    external: ClassVar[bool] = True

    def __init__(
        self,
        host: str,
        port: int = 443,
        warn_days: float = 21,
        fail_days: float = 3,
        *,
        cafile: str | None = None,
        timeout: Seconds = 1.0,
        name: str | None = None,
        clock: Clock = time.time,
    ) -> None:
        self._host = params.named("host", host)
        self._port = port_of(port)
        self._warn = params.number("warn_days", warn_days)
        self._fail = params.number("fail_days", fail_days)
        if self._fail > self._warn:
            rule = f"must be at most warn_days, which is {self._warn:g}"
            params.refuse(ValueError, "fail_days", rule, fail_days)
        self._timeout = seconds_of(timeout)
        self._clock = params.plain_function("clock", clock)
        self._trusting = ssl.create_default_context(cafile=cafile)
        self._blind = _blind_context()
        super().__init__(f"tls:{host}:{port}" if name is None else name)

    def __call__(self) -> Finding:
        """Shake hands, and read the certificate.

        Returns:
            The days that are left. It fails where clients do not trust the certificate, where it ends too
            soon, and where nobody speaks TLS.
        """
        distrust, seconds = "", in_time(self._timeout)
        try:
            try:
                certificate = self._certificate(self._trusting, seconds)
            except ssl.SSLCertVerificationError as exc:
                distrust = exc.verify_message or reason(exc)
                certificate = self._certificate(self._blind, in_time(self._timeout))
        except ssl.SSLError as exc:
            told = f"clients do not trust it: {distrust}; " if distrust else ""
            return Finding(Status.FAIL, f"{told}no handshake: {reason(exc)}")
        except OSError as exc:
            return _no_connection(exc, self._host, self._port, seconds)
        try:
            ends = expiry_of(certificate)
        except ValueError as exc:
            return Finding(Status.FAIL, f"its certificate cannot be read: {reason(exc)}")
        return self._judge(ends, distrust)

    def _judge(self, ends: datetime, distrust: str) -> Finding:
        left = (ends.timestamp() - self._clock()) / _DAY
        days = math.floor(left)
        when = f"{ends:%Y-%m-%d %H:%M} UTC"
        span = f"{abs(days)} day{'' if abs(days) == 1 else 's'}"
        told = f"it ended {span} ago, {when}" if left < 0 else f"it ends in {span}, {when}"
        status = Status.PASS
        if left <= self._warn:
            status = Status.FAIL if left <= self._fail else Status.WARN
        if distrust:
            status, told = Status.FAIL, f"clients do not trust it: {distrust}; {told}"
        return Finding(
            status, told, round(left, 2), "days", {"ends": ends.isoformat(), "trusted": not distrust}
        )

    def _certificate(self, context: ssl.SSLContext, seconds: float) -> bytes:
        """Return the certificate of the server as it is sent."""
        plain = connected(self._host, self._port, seconds)
        try:
            secure = context.wrap_socket(plain, server_hostname=self._host, do_handshake_on_connect=False)
        except BaseException:
            plain.close()
            raise
        # Each step of a handshake may take as long as the socket's timeout; all of it may not.
        with secure, Watchdog(seconds, lambda: cut(secure.fileno)) as dog:
            try:
                secure.do_handshake()
            except OSError as exc:
                if dog.bit:
                    raise TimeoutError("no handshake in time") from exc
                raise
            return secure.getpeercert(binary_form=True) or b""

    def _subject(self) -> str:
        return f"{self._host}:{self._port}"


def port_of(port: object) -> int:
    """Return a port that was given."""
    number = params.count("port", port)
    if number > _MOST_PORTS:
        params.refuse(ValueError, "port", f"must be at most {_MOST_PORTS}", port)
    return number


def connected(host: str, port: int, seconds: float) -> socket.socket:
    """Return a socket that is connected, to the first address of *host* that answers.

    `socket.create_connection` gives each of them the whole time.

    Raises:
        OSError: none does; the first one's reason, or a TimeoutError.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as exc:  # a name that is none
        raise OSError(str(exc)) from exc
    until = time.monotonic() + seconds
    failure: OSError | None = None
    for family, kind, protocol, _, address in addresses:
        one = socket.socket(family, kind, protocol)
        try:
            one.settimeout(max(_LEAST, until - time.monotonic()))
            one.connect(address)
            one.settimeout(seconds)
            return one
        except OSError as exc:
            one.close()
            failure = failure or exc
            if time.monotonic() >= until:
                break
        except BaseException:
            one.close()
            raise
    try:
        raise failure or OSError(f"{host} has no address")
    finally:
        failure = None  # it refers to this frame


def _no_connection(error: OSError, host: str, port: int, seconds: float) -> Finding:
    if isinstance(error, TimeoutError):
        return Finding(Status.FAIL, f"{host}:{port} does not answer within {seconds:.3g} s")
    return Finding(Status.FAIL, f"{host}:{port} cannot be reached: {reason(error)}")


def _blind_context() -> ssl.SSLContext:
    """Return what trusts everybody: to read a certificate, and for nothing else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
