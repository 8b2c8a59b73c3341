"""Fixtures of the store tests."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from payloadd.config.settings import Settings, load

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def bucket_name(request: pytest.FixtureRequest) -> str:
    """Return a name for the bucket of a test that no other test uses."""
    return f"store-{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:16]}"


@pytest.fixture(autouse=True)
def no_ca_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the authorities of the machine: botocore reads this variable for every store."""
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)


@pytest.fixture
def no_aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Hide the machine's AWS configuration, and return the folder of the test's own."""
    folder = tmp_path / "aws"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(folder / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def make_settings() -> Callable[..., Settings]:
    """Return a function that makes settings: the bucket ``bucket`` and static keys by default."""

    def make(**names: str) -> Settings:
        return load(
            {
                "STORE_URL": "s3://bucket",
                "AWS_REGION": "us-east-1",
                "AWS_ACCESS_KEY_ID": "key",
                "AWS_SECRET_ACCESS_KEY": "secret",
                "UPLOAD_TIMEOUT": "20s",
                **names,
            }
        )

    return make
