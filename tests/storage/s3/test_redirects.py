"""Where a redirect may lead, and what it does to a request."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import structlog.testing

from payloadd.config.parsers import S3Url
from payloadd.config.settings import load
from payloadd.errors import OperatorStoreError
from payloadd.storage.s3.redirects import Target, follow
from payloadd.storage.s3.response import S3Response
from payloadd.storage.s3.store import S3Store, open_s3_store
from tests.support.objects import MEMBERS, plain
from tests.support.store import FakeS3, fake_s3
from tests.support.store_behaviours import redirect
from tests.support.store_in_memory import store_in_memory

if TYPE_CHECKING:
    from tests.support.store import Behaviour

AWS = "https://bucket.s3.eu-west-1.amazonaws.com"
OWN = "https://s3.example.com:9000"


@pytest.mark.parametrize(
    ("origin", "location", "expected"),
    [
        (AWS, "https://bucket.s3-eu-west-1.amazonaws.com/k?x", "/k?x"),
        (AWS, "https://s3.dualstack.eu-west-3.amazonaws.com/bucket/k", "/bucket/k"),
        (AWS, "https://bucket.s3-fips.dualstack.us-gov-west-1.amazonaws.com/k", "/k"),
        (AWS, "https://s3-external-1.amazonaws.com/bucket/k", "/bucket/k"),
        (AWS, "https://bucket.s3.amazonaws.com/k", "/k"),
        (AWS, "/other", "/other"),
        (OWN, "https://s3.example.com/k", "/k"),
        (OWN, "https://node-2.s3.example.com:9001/k%20k", "/k%20k"),
        (OWN, "https://bucket.s3.example.com/", "/"),
        ("http://s3.example.com", "https://s3.example.com/k", "/k"),
        ("http://127.0.0.1:9000", "http://127.0.0.1:9001/k", "/k"),
    ],
)
def test_a_redirect_within_the_domain_is_followed(
    origin: str, location: str, expected: str
) -> None:
    """A bucket of the last 24 hours, or one behind a cluster's front, could not be used."""
    response = S3Response(307, [(b"Location", location.encode())])
    target = follow(response, origin, "bucket", origin)
    assert target is not None
    assert target.target == expected.encode()
    assert target == Target(target.origin, target.target)


@pytest.mark.parametrize(
    ("origin", "location"),
    [
        (AWS, "https://bucket.s3.evil.example/k"),
        (AWS, "https://ec2-1-2-3-4.compute.amazonaws.com/k"),
        (AWS, "https://s3.evil-amazonaws.com/k"),
        (AWS, "https://s3-evil-1.eu-west-1.elb.amazonaws.com/k"),
        (AWS, "https://s3.evil.amazonaws.com/k"),
        (AWS, "https://s3.cn-north-1.amazonaws.com.cn/k"),
        (AWS, "http://bucket.s3.eu-west-1.amazonaws.com/k"),
        (OWN, "https://evil-s3.example.com/k"),
        (OWN, "https://example.com/k"),
        (OWN, "http://s3.example.com/k"),
        (OWN, "ftp://s3.example.com/k"),
        (OWN, "https://user:password@s3.example.com/k"),
        (OWN, "https://s3.example.com@evil.example/k"),
        (OWN, "https://s3.example.com:99999/k"),
        (OWN, "https://s3.example.com/\x01"),
        (OWN, "https://s3.example.com/é"),
        (OWN, "https://[::1"),
        ("http://127.0.0.1:9000", "http://localhost:9000/k"),
    ],
)
def test_a_redirect_to_another_domain_is_not_followed(origin: str, location: str) -> None:
    """Any server on the way could get a signed request, and a session token."""
    response = S3Response(307, [(b"location", location.encode())])
    assert follow(response, origin, "bucket", origin) is None


@pytest.mark.parametrize(("status", "followed"), [(301, False), (302, False), (308, True)])
def test_statuses_that_change_the_method_are_not_followed(status: int, followed: bool) -> None:  # noqa: FBT001
    """A PUT would become a GET."""
    response = S3Response(status, [(b"location", b"/k")])
    assert (follow(response, OWN, "bucket", OWN) is not None) is followed


async def test_a_redirected_object_is_stored_and_the_redirect_logged_once() -> None:
    """Each object of a new bucket would be a line in the log, or would be refused."""
    async with fake_s3() as there, fake_s3() as here:
        here.behaviour = redirect(307, f"{there.url}/elsewhere")
        store = await open_at(here)
        with structlog.testing.capture_logs() as lines:
            for _ in range(2):
                await store.put("k", plain(b"1\n"), MEMBERS, repeat=False)
        await store.aclose()
        assert there.objects == {"/elsewhere": b"1\n"}
        assert len(here.seen) == 2, "the redirect is temporary"
    assert [line["what"] for line in lines] == ["redirect"]
    assert store.learnt() == [f"redirect: {here.url} redirects to {there.url}"]


async def open_at(fake: FakeS3) -> S3Store:
    """Return a store that uses sockets."""
    settings = load(fake.environ)
    assert isinstance(settings.store_url, S3Url)
    return await open_s3_store(settings, settings.store_url)


@pytest.mark.parametrize(
    ("behaviour", "requests"),
    [
        (redirect(307, "/again"), 4),
        (redirect(307, "http://127.0.0.2:1/"), 1),
    ],
)
async def test_redirects_end(behaviour: Behaviour, requests: int) -> None:
    """Two servers that redirect to each other would occupy a worker for ever."""
    fake = FakeS3(behaviour, port=1)
    store = await store_in_memory(fake)
    with pytest.raises(OperatorStoreError, match=r"TemporaryRedirect.*not followed"):
        await store.put("k", plain(b"1\n"), MEMBERS, repeat=False)
    assert fake.requests == requests
