"""Files in ``$CREDENTIALS_DIRECTORY``, and PEM documents in place of their paths."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import pytest
import trustme

from payloadd.config import settings as config
from payloadd.config.credential_files import read_credentials
from payloadd.errors import SettingsError
from tests.config.wrong_settings import problems


@pytest.fixture(scope="module")
def pem() -> str:
    """Return a certificate and its key as one PEM document."""
    return trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.bytes().decode()


def test_files_that_are_no_settings_are_not_read(tmp_path: Path) -> None:
    """A credential of another program, such as a binary key, would stop the start."""
    (tmp_path / "max_workers").write_text("8\n")
    (tmp_path / "binary.key").write_bytes(bytes(range(256)))
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")).write_bytes(b"\xff")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "unreadable").symlink_to("/proc/1/mem")
    (tmp_path / "loop").symlink_to("loop")
    settings = config.load({"CREDENTIALS_DIRECTORY": str(tmp_path)})

    assert settings.max_workers == 8


def test_a_setting_with_other_bytes_than_utf_8_is_named(tmp_path: Path) -> None:
    """An operator would have to guess which of the files is wrong."""
    (tmp_path / "aws_secret_access_key").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError) as caught:
        config.load({"CREDENTIALS_DIRECTORY": str(tmp_path)})

    assert caught.value.problems[0].startswith("AWS_SECRET_ACCESS_KEY: ")
    assert "UTF-8" in caught.value.problems[0]


def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon would start without the setting."""
    (tmp_path / "tls_key").write_text("x")

    def refuse(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    _, (problem,) = read_credentials(str(tmp_path), {"tls_key"})
    assert "tls_key" in problem
    assert "Permission denied" in problem


@pytest.mark.parametrize("name", ["TLS_CERT", "TLS_KEY", "TLS_CLIENT_CA", "AWS_CA_BUNDLE"])
def test_a_credential_that_is_a_pem_document_is_used_itself(
    tmp_path: Path, pem: str, name: str
) -> None:
    """Systemd passes the certificate, not a path of it: the daemon could not use it."""
    text = f"friendly name: Müller\n{pem}".encode("latin-1")
    (tmp_path / name.lower()).write_bytes(text)
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path), "TLS_CERT": "/c", "TLS_KEY": "/k"}
    settings = config.load(environ)

    assert getattr(settings, name.lower()) == tmp_path / name.lower()


def test_a_credential_may_be_the_path_of_a_pem_file(tmp_path: Path) -> None:
    """Configurations of former versions would not work any more."""
    (tmp_path / "tls_cert").write_text("/etc/ssl/cert.pem\n")
    (tmp_path / "tls_key").write_text("/etc/ssl/key.pem\n")
    settings = config.load({"CREDENTIALS_DIRECTORY": str(tmp_path)})

    assert settings.tls_cert == Path("/etc/ssl/cert.pem")


def test_a_variable_that_is_a_pem_document_can_be_used_as_a_file(pem: str) -> None:
    """Container platforms pass certificates in variables: each would need a file around it."""
    settings = config.load({"TLS_CERT": pem, "TLS_KEY": f"\n{pem}"})
    assert settings.tls_cert is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for _ in range(2):
        context.load_cert_chain(settings.tls_cert, settings.tls_key)

    assert "PRIVATE KEY" not in repr(settings)


def test_a_damaged_pem_document_is_not_shown(pem: str) -> None:
    """A private key would be in the log."""
    with pytest.raises(SettingsError) as caught:
        config.load({"TLS_KEY": pem})

    assert "PRIVATE" not in str(caught.value)


def test_credentials_of_systemd_take_precedence_over_the_environment(tmp_path: Path) -> None:
    """Secrets would have to be in the environment, which `systemctl show` prints."""
    (tmp_path / "aws_access_key_id").write_text("AKIAFILE\n")
    (tmp_path / "aws_secret_access_key").write_text("from-file\n")
    (tmp_path / "unrelated").write_text("x")
    (tmp_path / "folder").mkdir()
    settings = config.load(
        {
            "CREDENTIALS_DIRECTORY": str(tmp_path),
            "AWS_ACCESS_KEY_ID": "AKIAENV",
            "AWS_SECRET_ACCESS_KEY": "from-environment",
        }
    )
    assert settings.aws_access_key_id == "AKIAFILE"
    assert settings.aws_secret_access_key == "from-file"


def test_credentials_that_cannot_be_read_are_reported(tmp_path: Path) -> None:
    """The daemon would start without the secrets, and every upload would fail."""
    (problem,) = problems(CREDENTIALS_DIRECTORY=str(tmp_path / "absent"))
    assert problem.startswith("CREDENTIALS_DIRECTORY: cannot read")
