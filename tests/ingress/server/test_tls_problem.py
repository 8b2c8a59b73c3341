"""The file of TLS that cannot be used is named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from payloadd.config import settings as config
from payloadd.errors import SettingsError
from payloadd.ingress.server.tls import open_certificates

if TYPE_CHECKING:
    from tests.ingress.tls_files import Files

CUT: Final = b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"


def encrypted_key() -> bytes:
    """Return a key that needs a passphrase."""
    key = load_pem_private_key(trustme.CA().issue_cert("x").private_key_pem.bytes(), None)
    encryption = BestAvailableEncryption(b"secret")
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("cert.pem", None, "TLS_CERT: '{}' cannot be read: No such file"),
        ("key.pem", None, "TLS_KEY: '{}' cannot be read: No such file"),
        ("ca.pem", None, "TLS_CLIENT_CA: '{}' cannot be read: No such file"),
        ("key.pem", b"no key", "TLS_KEY: '{}' has no PEM block 'PRIVATE KEY'"),
        ("cert.pem", b"no key", "TLS_CERT: '{}' has no PEM block 'CERTIFICATE'"),
        ("cert.pem", CUT, "TLS_CERT: '{}' is not a certificate that can be used: "),
        ("ca.pem", CUT, "TLS_CLIENT_CA: '{}' is not a certificate that can be used: "),
        ("key.pem", CUT.replace(b"CERTIFICATE", b"PRIVATE KEY"), "TLS_KEY: '{}' is not a key that"),
        ("key.pem", encrypted_key(), "TLS_KEY: '{}' is encrypted"),
        (
            "key.pem",
            trustme.CA().issue_cert("x").private_key_pem.bytes(),
            "TLS_CERT, TLS_KEY: the key '{}' does not belong to the certificate",
        ),
    ],
)
def test_the_file_that_cannot_be_used_is_named(
    files: Files, name: str, text: bytes | None, problem: str
) -> None:
    """The daemon would start without TLS, or an operator would look into the wrong file."""
    path = files.folder / name
    files.authority.cert_pem.write_to_path(files.folder / "ca.pem")
    if text is None:
        path.unlink()
    else:
        path.write_bytes(text)
    environ = {**files.environ, "TLS_CLIENT_CA": str(files.folder / "ca.pem")}
    with pytest.raises(SettingsError) as caught:
        open_certificates(config.load(environ))
    (found,) = caught.value.problems
    assert found.startswith(problem.format(path))
