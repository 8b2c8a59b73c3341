"""Signatures, compared with the examples of AWS's documentation and with botocore."""

from __future__ import annotations

import hashlib
from calendar import timegm
from datetime import UTC, datetime
from unittest.mock import patch

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import example, given
from hypothesis import strategies as st

from payloadd.storage.s3.sigv4 import BODY_HASH, Keys, SignatureTemplate, Signer, quote_key

EMPTY = hashlib.sha256(b"").hexdigest()
# "Signature Calculations for the Authorization Header", Amazon S3 API reference.
EXAMPLE = Signer(
    Keys("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
    "us-east-1",
    timegm((2013, 5, 24, 0, 0, 0)),
)
HOST = "examplebucket.s3.amazonaws.com"
PUT_HEADERS = {
    "date": "Fri, 24 May 2013 00:00:00 GMT",
    "x-amz-storage-class": "REDUCED_REDUNDANCY",
    BODY_HASH: "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
}


@pytest.mark.parametrize(
    ("method", "target", "headers", "signature"),
    [
        (
            "GET",
            "/test.txt",
            {"range": "bytes=0-9", BODY_HASH: EMPTY},
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        ),
        (
            "PUT",
            "/test%24file.text",
            PUT_HEADERS,
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
        ),
        (
            "GET",
            "/?lifecycle",
            {BODY_HASH: EMPTY},
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
        ),
        (
            "GET",
            "/?max-keys=2&prefix=J",
            {BODY_HASH: EMPTY},
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
        ),
    ],
    ids=["get-object", "put-object", "get-lifecycle", "list-objects"],
)
def test_signatures_are_those_of_the_documentation(
    method: str, target: str, headers: dict[str, str], signature: str
) -> None:
    """S3 would refuse every request."""
    template = SignatureTemplate(EXAMPLE, method, {"host": HOST}, sorted(headers))
    signed = template.sign(target.encode(), raw(headers)).decode()

    assert signed.endswith(f"Signature={signature}")
    assert signed.startswith(
        "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, "
    )


def raw(headers: dict[str, str]) -> tuple[bytes, ...]:
    """Return the values of headers, sorted by name."""
    return tuple(text.encode() for _, text in sorted(headers.items()))


header_text = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=40)
header_names = st.from_regex(r"x-amz-meta-[a-z0-9-]{1,20}", fullmatch=True)
tokens = st.none() | st.text("abcABC019+/=", min_size=1, max_size=60)


@given(
    key=st.text(st.characters(exclude_categories=["Cs"]), max_size=60),
    headers=st.dictionaries(header_names, header_text, max_size=4),
    body=st.binary(max_size=200),
    moment=st.integers(946_684_800, 4_102_444_800),  # 2000 to 2100
    token=tokens,
    method=st.sampled_from(["PUT", "GET", "DELETE"]),
    varying=st.sets(header_names),
)
@example(
    key="a//b/../c/./é ü~%2F",
    headers={},
    body=b"",
    moment=1_772_600_767,
    token=None,
    method="PUT",
    varying=set(),
)
def test_signatures_are_those_of_botocore(
    key: str,
    headers: dict[str, str],
    body: bytes,
    moment: int,
    token: str | None,
    method: str,
    varying: set[str],
) -> None:
    """S3 would refuse some keys, headers or times with SignatureDoesNotMatch."""
    target = "/bucket/" + quote_key(key)
    now = datetime.fromtimestamp(moment, UTC).replace(tzinfo=None)
    fixed = {"host": "127.0.0.1:9000", "content-type": "application/x-ndjson", **headers}
    values = {BODY_HASH: hashlib.sha256(body).hexdigest(), **dict.fromkeys(varying, "a %s b")}
    covered = fixed | values

    request = AWSRequest(method, f"http://127.0.0.1:9000{target}", dict(covered), body)
    oracle = S3SigV4Auth(Credentials("key", "secret", token), "s3", "eu-west-1")
    with patch("botocore.auth.get_current_datetime", lambda: now):
        oracle.add_auth(request)
    signer = Signer(Keys("key", "secret", token), "eu-west-1", moment)

    template = SignatureTemplate(signer, method, fixed, sorted(values))
    for _ in range(2):
        signed = template.sign(target.encode(), raw(values))
        assert signed.decode() == request.headers["Authorization"]


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_quoted_key_has_only_characters_of_a_path(key: str) -> None:
    """A key with a space or a question mark would end the path in the middle."""
    allowed = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~/%")

    assert set(quote_key(key)) <= allowed


def test_the_repr_of_keys_has_no_secrets() -> None:
    """A log line or a traceback would show the keys."""
    shown = repr(Signer(Keys("AKIA", "my-secret", "my-token"), "r", 0.0))

    assert "AKIA" in shown
    assert "my-" not in shown


@pytest.mark.parametrize("bad", ["a b", "a\n", "é", "a\x7f"])
def test_keys_that_cannot_be_sent_in_a_header_are_refused(bad: str) -> None:
    """A line break pasted into a credentials file would stop the pipeline with a traceback."""
    with pytest.raises(ValueError, match="characters"):
        Keys(bad, "secret")
    with pytest.raises(ValueError, match="characters"):
        Keys("key", "secret", bad)
