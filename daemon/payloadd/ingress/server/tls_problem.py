"""Find out which of the files of TLS cannot be used: OpenSSL's error names none of them."""

from __future__ import annotations

import re
import ssl
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

_CERTIFICATE: Final = "CERTIFICATE"
_KEY: Final = "PRIVATE KEY"
_MISMATCH: Final = "KEY_VALUES_MISMATCH"


def tls_problem(certificate: Path, key: Path, client_ca: Path | None, error: OSError) -> str:
    """Return the problem of the settings TLS_CERT, TLS_KEY and TLS_CLIENT_CA.

    ``error`` is what loading the files has raised (``ssl.SSLError`` is an OSError). The files are
    read again.
    """
    files = [("TLS_CERT", certificate, _CERTIFICATE), ("TLS_KEY", key, _KEY)]
    if client_ca is not None:
        files.append(("TLS_CLIENT_CA", client_ca, _CERTIFICATE))
    for name, path, kind in files:
        problem = _problem_of_file(path, kind)
        if problem is not None:
            return f"{name}: {str(path)!r} {problem}"
    if isinstance(error, ssl.SSLError) and error.reason == _MISMATCH:
        return f"TLS_CERT, TLS_KEY: the key {str(key)!r} does not belong to the certificate"
    for name, path, kind in files:
        if kind == _CERTIFICATE and (problem := _problem_of_certificates(path)) is not None:
            return f"{name}: {str(path)!r} {problem}"
    return f"TLS_KEY: {str(key)!r} is not a key that can be used: {error}"


def _problem_of_file(path: Path, kind: str) -> str | None:
    """Return why a file cannot have a PEM block of a kind (RFC 7468); None: it has one."""
    try:
        text = path.read_bytes()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if not re.search(rb"-----BEGIN [A-Z0-9 ]*" + kind.encode() + b"-----", text):
        return f"has no PEM block {kind!r}"
    if kind == _KEY and (b"-----BEGIN ENCRYPTED" in text or b"Proc-Type: 4,ENCRYPTED" in text):
        return "is encrypted; allowed is a key without a passphrase"
    return None


def _problem_of_certificates(path: Path) -> str | None:
    """Return why the certificates of a file cannot be used; None: they can."""
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_verify_locations(path)
    except OSError as error:
        return f"is not a certificate that can be used: {error}"
    return None
