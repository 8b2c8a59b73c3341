"""What the status page says about troubles."""

from __future__ import annotations

import errno
import re
from dataclasses import fields
from typing import Final

import httpx
import pytest

from payloadd.config.settings import Settings, names_of
from payloadd.errors import UploadOutcome
from payloadd.observe import advice as texts
from payloadd.observe.advice import advice
from payloadd.storage.s3 import errors

GENERAL: Final = texts._ANSWER
OWN: Final = (
    "NoCredentials",
    "NoAnswer",
    "UploadTimeout",
    "InvalidEndpoint",
    "ProxyError",
    "ENCODER_FAILED",
)
"""Codes of the daemon itself, besides those that have constants."""


@pytest.mark.parametrize(
    "code",
    [
        *sorted(
            code for code, outcome in errors.BY_CODE.items() if outcome is not UploadOutcome.INVALID
        ),
        *sorted(errors.EXPIRED_KEYS | errors.REFUSED_KEYS),
        *(errors.NOT_S3, errors.WRONG_ANSWER, errors.SKEWED_CLOCK),
        *OWN,
        *("CertificateError", "NoSuchBucket", "MetadataTooLarge"),
        *("KMS.DisabledException", "KMS.NotFoundException", "HTTP500", "HTTP503", "HTTP429"),
    ],
)
def test_each_code_of_the_store_has_an_advice_of_its_own(code: str) -> None:
    """An operator would read only that something is wrong."""
    assert advice("store", code) != GENERAL


def test_errors_of_the_network_and_of_a_folder_have_an_advice() -> None:
    """The code of such an error is the name of a class or of an errno, so no table lists it."""
    network = [httpx.ConnectError, httpx.ReadTimeout, httpx.ConnectTimeout, httpx.ReadError]
    assert all("cannot be reached" in advice("store", error.__name__) for error in network)
    for number in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO, errno.ENODEV, errno.EDQUOT):
        assert "folder of STORE_URL" in advice("store", errno.errorcode[number])


def test_another_code_of_the_store_points_to_the_reason() -> None:
    """S3 servers have codes of their own."""
    assert advice("store", "HTTP418") == advice("store", "XOurGatewaySaysNo") == GENERAL


@pytest.mark.parametrize(
    ("part", "code", "word"),
    [
        ("journal", "SQLITE_FULL", "Free space"),
        ("journal", "SQLITE_IOERR_WRITE", "Free space"),
        ("journal", "DiskFull", "database of JOURNAL_URL"),
        ("journal", "OperationalError", "database of JOURNAL_URL"),
        ("journal", "FILE_GONE", "move it back"),
        ("journal", "FILE_NOT_WRITTEN", "tried again"),
        ("journal_read", "SQLITE_IOERR_READ", "still accepted"),
        ("journal_data", "PAYLOADS_MISSING", "sent again"),
        ("another", "X", "README"),
    ],
)
def test_troubles_of_the_journal_have_an_advice(part: str, code: str, word: str) -> None:
    """The disk of the journal and the disk of a store in a folder may be two disks."""
    assert word in advice(part, code)


def test_settings_that_an_advice_names_exist() -> None:
    """An operator would set a variable that is ignored."""
    known = {name for item in fields(Settings) for name in names_of(item.name)}
    known |= {"HTTPS_PROXY", "NO_PROXY"}
    every = [*texts._STORE.values(), *texts._JOURNAL.values(), texts._FOLDER, texts._SLOWER]
    every += [text for _, text in texts._STORE_PATTERNS] + [texts._DISK, texts._READS]
    named = {name for text in every for name in re.findall(r"\b[A-Z][A-Z0-9]*_[A-Z0-9_]+\b", text)}
    assert named
    assert named <= known
