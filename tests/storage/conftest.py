"""Rigs of the store tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from payloadd.config.settings import Settings, load
from tests.support.s3 import S3Server, moto_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def moto() -> Iterator[S3Server]:
    """Run one moto for the whole session; every test makes a bucket of its own."""
    with moto_server() as server:
        yield server


@pytest.fixture
def no_aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Hide whatever AWS configuration the machine has; returns the folder of ours."""
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
    """Return a maker of settings for the bucket ``bucket`` with static keys."""

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
