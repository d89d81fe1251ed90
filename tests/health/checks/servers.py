"""Small servers that answer what a test says, to one connection after the other."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

_BEGIN = datetime(2019, 1, 1, tzinfo=UTC)
# When the certificates end: "good" and "expired" are by an authority of their own, "selfsigned" is by itself,
# and all are for 127.0.0.1.
_ENDS = {
    "ca": datetime(2125, 1, 1, tzinfo=UTC),
    "good": datetime(2120, 1, 1, tzinfo=UTC),
    "expired": datetime(2020, 6, 15, 12, tzinfo=UTC),
    "selfsigned": datetime(2121, 1, 1, tzinfo=UTC),
}


class Certificates:
    """Certificates with their keys, each in a file of *folder*: `good.pem` and so on; `ca.pem` is trusted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in _ENDS}
        for name, ends in _ENDS.items():
            issuer = "ca" if name in {"good", "expired"} else name
            builder = (
                x509.CertificateBuilder()
                .subject_name(_named(name))
                .issuer_name(_named(issuer))
                .public_key(keys[name].public_key())
                .serial_number(x509.random_serial_number())
                .not_valid_before(_BEGIN)
                .not_valid_after(ends)
                .add_extension(x509.BasicConstraints(ca=issuer == name, path_length=None), critical=True)
                .add_extension(_address(), critical=False)
            )
            certificate = builder.sign(keys[issuer], hashes.SHA256())
            key = keys[name].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            self.path(name).write_bytes(key + certificate.public_bytes(Encoding.PEM))

    def path(self, name: str) -> Path:
        """Return the file of one."""
        return self.folder / f"{name}.pem"

    def der(self, name: str) -> bytes:
        """Return one as a server sends it."""
        text = self.path(name).read_text()
        return ssl.PEM_cert_to_DER_cert(text[text.index("-----BEGIN CERTIFICATE") :])


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"resilient test {name}")])


def _address() -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])


class Answering:
    """Listen on a port of its own, and have *answer* deal with each connection."""

    def __init__(
        self, answer: Callable[[socket.socket], object] = lambda _: None, *, certificate: Path | None = None
    ) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.connections = 0
        self._over = threading.Event()
        self._context = None if certificate is None else ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if self._context is not None and certificate is not None:
            self._context.load_cert_chain(certificate)
        self._thread = threading.Thread(target=self._serve)

    @property
    def over(self) -> threading.Event:
        """Set when the test is over: for an answer that waits."""
        return self._over

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        with suppress(OSError), socket.socket() as waker:  # `create_connection` may be a test's own
            waker.connect(("127.0.0.1", self.port))
        self._thread.join(20.0)
        self._listener.close()

    def _serve(self) -> None:
        while not self._over.is_set():
            conn, _ = self._listener.accept()
            if self._over.is_set():
                conn.close()
                return
            self.connections += 1
            with suppress(OSError), conn:
                conn.settimeout(20.0)
                if self._context is None:
                    self._answer(conn)
                else:
                    with self._context.wrap_socket(conn, server_side=True) as secure:
                        self._answer(secure)


def request_of(conn: socket.socket) -> bytes:
    """Return the head of a request."""
    head = b""
    while b"\r\n\r\n" not in head:
        data = conn.recv(65_536)
        if not data:
            break
        head += data
    return head
