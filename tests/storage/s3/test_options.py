"""Object options: the headers that they add, compared with those of botocore."""

from __future__ import annotations

import base64
import hashlib
import zlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.session import Session
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from payloadd.config.settings import load
from payloadd.errors import InvalidObjectError, OperatorStoreError
from payloadd.storage.s3.checksums import BodyHeaders
from payloadd.storage.s3.options import object_options
from payloadd.storage.s3.sigv4 import Keys, SignatureTemplate, Signer
from tests.support.objects import MEMBERS, plain
from tests.support.store import FakeS3, Refusal
from tests.support.store_behaviours import Rejects
from tests.support.store_in_memory import store_in_memory

if TYPE_CHECKING:
    from botocore.awsrequest import AWSPreparedRequest

OBJECT: Final = plain(b"1\n")
ALL: Final = {
    "S3_STORAGE_CLASS": "STANDARD_IA",
    "S3_SSE": "aws:kms",
    "S3_SSE_KMS_KEY_ID": "arn:aws:kms:eu-west-1:123456789012:key/1234",
    "S3_ACL": "bucket-owner-full-control",
    "S3_TAGS": "team=a b&cost=4%2C2",
    "S3_METADATA": "owner=me (you),env=x%2Cy",
    "S3_EXPECTED_BUCKET_OWNER": "123456789012",
    "S3_REQUEST_PAYER": "requester",
}
AS_BOTOCORE: Final[dict[str, Any]] = {
    "StorageClass": "STANDARD_IA",
    "ServerSideEncryption": "aws:kms",
    "SSEKMSKeyId": "arn:aws:kms:eu-west-1:123456789012:key/1234",
    "ACL": "bucket-owner-full-control",
    "Tagging": "team=a%20b&cost=4%2C2",
    "Metadata": {"owner": "me (you)", "env": "x,y"},
    "ExpectedBucketOwner": "123456789012",
    "RequestPayer": "requester",
}


def headers_of_botocore(options: dict[str, Any]) -> dict[str, str]:
    """Return the headers that botocore's client sends with a PutObject."""
    client = Session().create_client(
        "s3",
        region_name="eu-west-1",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
        config=Config(request_checksum_calculation="when_required"),
    )
    sent: list[AWSPreparedRequest] = []

    class StopError(Exception):
        pass

    def keep(request: AWSPreparedRequest, **_: object) -> None:
        sent.append(request)
        raise StopError

    client.meta.events.register("before-send.s3", keep)
    with pytest.raises(StopError):
        client.put_object(Bucket="bucket", Key="k", Body=b"1\n", **options)
    return {
        name.lower(): text.decode() if isinstance(text, bytes) else text
        for name, text in sent[0].headers.items()
    }


def test_options_are_the_headers_of_botocore() -> None:
    """S3 would ignore an option, or refuse every object."""
    options = object_options(load(ALL)).put
    theirs = headers_of_botocore(AS_BOTOCORE)
    added = set(theirs) - set(headers_of_botocore({}))
    assert {name: theirs[name] for name in added} == options
    assert len(options) == len(ALL) + 1


async def test_every_option_is_sent_and_signed() -> None:
    """An option would be lost, or an object refused with SignatureDoesNotMatch."""
    fake = FakeS3(port=1)
    store = await store_in_memory(fake, **ALL)
    await store.put("k", OBJECT, MEMBERS, repeat=True)
    await store.read_back("k", OBJECT, MEMBERS)
    await store.delete("k")
    options = object_options(load(ALL))
    put, head, delete = fake.seen
    assert options.put.items() <= put.headers.items()
    for request, expected in ((put, options.put), (head, options.other), (delete, options.other)):
        assert expected.items() <= request.headers.items()
        signed = request.headers["authorization"].split("SignedHeaders=")[1].split(",")[0]
        amz = {name for name in request.headers if name.startswith("x-amz-")}
        assert amz | {"host"} <= set(signed.split(";"))
    assert set(options.other) == {"x-amz-expected-bucket-owner", "x-amz-request-payer"}


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("crc32", zlib.crc32(b"1\n").to_bytes(4)),
        ("sha256", hashlib.sha256(b"1\n").digest()),
        ("none", None),
    ],
)
async def test_the_chosen_checksum_is_sent(name: str, digest: bytes | None) -> None:
    """S3 would keep another checksum than the operator asked for."""
    fake = FakeS3(port=1)
    store = await store_in_memory(fake, S3_CHECKSUM=name)
    await store.put("k", OBJECT, MEMBERS, repeat=False)
    (put,) = fake.seen
    sent = {key: text for key, text in put.headers.items() if "checksum" in key}
    expected = {} if digest is None else {f"x-amz-checksum-{name}": base64.b64encode(digest)}
    assert sent == {key: text.decode() for key, text in expected.items()}


subsets = st.sets(st.sampled_from([name for name in ALL if name != "S3_SSE_KMS_KEY_ID"]))


@given(
    chosen=subsets,
    checksum=st.sampled_from(["crc32", "crc32c", "crc64nvme", "sha256", "none"]),
    conditional=st.booleans(),
    content_md5=st.booleans(),
    body=st.binary(max_size=50),
    token=st.none() | st.just("token/+="),
)
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
def test_signatures_of_all_options_are_those_of_botocore(
    chosen: set[str],
    checksum: str,
    conditional: bool,  # noqa: FBT001 - hypothesis passes names
    content_md5: bool,  # noqa: FBT001
    body: bytes,
    token: str | None,
) -> None:
    """S3 would refuse some combination of options with SignatureDoesNotMatch."""
    found = load({name: ALL[name] for name in chosen})
    hashes = BodyHeaders(checksum)
    fixed = {"host": "h:9000", "content-type": "application/x-ndjson", **object_options(found).put}
    fixed |= {"if-none-match": "*"} if conditional else {}
    varying = (*hashes.names(content_md5=content_md5), "x-amz-meta-first", "x-amz-meta-payloads")
    values = (*hashes.values([body], content_md5=content_md5), b"id", b"1")
    covered = fixed | dict(zip(varying, [value.decode() for value in values], strict=True))

    request = AWSRequest("PUT", "http://h:9000/bucket/k", dict(covered), body)
    S3SigV4Auth(Credentials("key", "secret", token), "s3", "eu-west-1").add_auth(request)
    stamp = request.context["timestamp"]
    moment = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    signer = Signer(Keys("key", "secret", token), "eu-west-1", moment)
    template = SignatureTemplate(signer, "PUT", fixed, varying)
    assert template.sign(b"/bucket/k", values).decode() == request.headers["Authorization"]


@pytest.mark.parametrize(
    ("code", "message", "setting"),
    [
        ("InvalidArgument", "Unsupported header 'x-amz-checksum-crc32' received", "S3_CHECKSUM"),
        ("NotImplemented", "Header 'x-amz-sdk-checksum-algorithm' not implemented", "S3_CHECKSUM"),
        ("InvalidStorageClass", "not valid", "S3_STORAGE_CLASS"),
        ("KMS.NotFoundException", "no key", "S3_SSE_KMS_KEY_ID"),
        ("InvalidEncryptionAlgorithmError", "no", "S3_SSE"),
        ("AccessControlListNotSupported", "The bucket does not allow ACLs", "S3_ACL"),
        ("InvalidTag", "duplicate", "S3_TAGS"),
        ("NotImplemented", "Header 'x-amz-tagging' with value 'a' not implemented", "S3_TAGS"),
        ("InvalidBucketOwnerAWSAccountID", "no", "S3_EXPECTED_BUCKET_OWNER"),
        ("MetadataTooLarge", "too large", "S3_METADATA"),
    ],
)
async def test_a_refused_option_is_a_trouble_that_names_its_setting(
    code: str, message: str, setting: str
) -> None:
    """A wrong combination of settings would make dead letters, or leave the operator to guess."""
    status = 501 if code == "NotImplemented" else 400
    fake = FakeS3(Refusal(status, code, message), port=1)
    store = await store_in_memory(fake, S3_METADATA="a=1")
    with pytest.raises(OperatorStoreError, match=setting) as caught:
        await store.put("k", OBJECT, MEMBERS, repeat=False)
    assert caught.value.code == code


async def test_metadata_of_the_daemon_alone_cannot_be_shortened() -> None:
    """An object would be tried for ever that no store setting can save."""
    fake = FakeS3(Refusal(400, "MetadataTooLarge"), port=1)
    store = await store_in_memory(fake)
    with pytest.raises(InvalidObjectError):
        await store.put("k", OBJECT, MEMBERS, repeat=False)


async def test_a_store_that_refuses_checksums_works_without() -> None:
    """Backblaze B2 and old gateways could not be used."""
    refused = Refusal(400, "InvalidArgument", "Unsupported header 'x-amz-checksum-crc32'")
    fake = FakeS3(Rejects("x-amz-checksum", refused), port=1)
    store = await store_in_memory(fake, AWS_REQUEST_CHECKSUM_CALCULATION="when_required")
    await store.put("k", OBJECT, MEMBERS, repeat=False)
    assert fake.objects == {"/bucket/k": b"1\n"}
