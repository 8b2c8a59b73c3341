"""S3 servers for the tests: SeaweedFS as a process, moto as a thread.

Both refuse wrong signatures. Nothing here is a fixture: the caller decides how long a server runs.
The kernel chooses all ports; all addresses are 127.0.0.1.
"""

from __future__ import annotations

import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.support.weed import SeaweedProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tests.support.processes import Processes

REGION: Final = "us-east-1"
_START_SECONDS: Final = 90.0
"""SeaweedFS needs a few seconds, and several times as long on a loaded machine."""
_READERS: Final = 8
_SESSION: Final = boto3.session.Session()
"""One session for all clients: it keeps the parsed service models, which take half a second."""


@dataclass
class S3Server:
    """A running S3 server, and the operations that tests need."""

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)
    process: SeaweedProcess | None = None

    @property
    def environ(self) -> dict[str, str]:
        """The environment variables that name this server to payloadd, and to any AWS SDK."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
        }

    def client(self, service: str = "s3") -> Any:  # noqa: ANN401 - boto3 makes its classes at run time
        """Return a boto3 client, which the caller has to close."""
        return _SESSION.client(
            service,
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(
                retries={"total_max_attempts": 1},
                s3={"addressing_style": "path"},
                max_pool_connections=_READERS,
                proxies={},
                read_timeout=20,
            ),
        )

    def make_bucket(self, name: str) -> str:
        """Create a bucket, unless it exists, and return its name."""
        with closing(self.client()) as client:
            _retry_until_ready(lambda: _create_bucket(client, name))
        return name

    def drop_bucket(self, name: str) -> None:
        """Delete a bucket and all objects in it."""
        keys = self.keys(name)
        # One by one: Swift refuses DeleteObjects without Content-MD5, which boto3 does not send.
        with closing(self.client()) as client:
            with ThreadPoolExecutor(_READERS) as pool:
                list(pool.map(lambda key: client.delete_object(Bucket=name, Key=key), keys))
            client.delete_bucket(Bucket=name)

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """Return every key of a bucket that begins with ``prefix``, sorted."""
        with closing(self.client()) as client:
            paginator = client.get_paginator("list_objects_v2")
            pages = paginator.paginate(Bucket=bucket, Prefix=prefix)
            return sorted(item["Key"] for page in pages for item in page.get("Contents", ()))

    def objects(self, bucket: str, prefix: str = "") -> dict[str, bytes]:
        """Return the objects of a bucket below ``prefix``: key to bytes as stored."""
        keys = self.keys(bucket, prefix)
        with closing(self.client()) as client, ThreadPoolExecutor(_READERS) as pool:
            bodies = pool.map(lambda key: _read(client, bucket, key), keys)
            return dict(zip(keys, bodies, strict=True))

    def head(self, bucket: str, key: str) -> dict[str, Any]:
        """Return the metadata of an object (boto3's ``head_object``)."""
        with closing(self.client()) as client:
            answer: dict[str, Any] = client.head_object(Bucket=bucket, Key=key)
            return answer


@contextmanager
def seaweedfs(folder: Path) -> Iterator[S3Server]:
    """Run SeaweedFS with its data in ``folder``; it stores objects when the block is entered."""
    access_key, secret_key = "seaweed-user", "seaweed/secret+key"
    process = SeaweedProcess(folder, access_key, secret_key)
    server = S3Server(process.endpoint, access_key, secret_key, process)
    try:
        process.start()
        wait_until_ready(server, process)
        yield server
    finally:
        process.stop()


def wait_until_ready(server: S3Server, process: SeaweedProcess | Processes) -> None:
    """Return once the server stores objects, also after a :meth:`SeaweedProcess.start`.

    A SeaweedFS whose port was taken for a while is started again.

    Raises AssertionError, with the end of the log, if a process of the server ends.
    """

    def probe() -> None:
        if isinstance(process, SeaweedProcess) and process.lacked_a_port():
            process.stop()
            process.start()
        elif process.failed():
            raise AssertionError(process.end_of_log())
        _create_bucket(client, "ready")
        client.put_object(Bucket="ready", Key="probe", Body=b"probe")
        client.delete_object(Bucket="ready", Key="probe")

    with closing(server.client()) as client:
        _retry_until_ready(probe)


@contextmanager
def moto_server() -> Iterator[S3Server]:
    """Run moto's server in a thread, with an IAM user and every signature checked."""
    # Imported here: the import takes seconds, and most tests do not need it.
    from moto.server import ThreadedMotoServer  # noqa: PLC0415

    # Otherwise Werkzeug prints every request.
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        unchecked = S3Server(endpoint, "no-user", "no-secret")
        user = moto_user(unchecked, "t", ["s3:*", "iam:*"], "*")
        with _moto_authentication():
            yield user
    finally:
        server.stop()


@contextmanager
def _moto_authentication() -> Iterator[None]:
    """Make moto check signatures and policies within the block."""
    from moto import settings  # noqa: PLC0415 - as in moto_server

    before = settings.INITIAL_NO_AUTH_ACTION_COUNT
    settings.INITIAL_NO_AUTH_ACTION_COUNT = 0
    try:
        yield
    finally:
        settings.INITIAL_NO_AUTH_ACTION_COUNT = before


def moto_user(server: S3Server, name: str, actions: Sequence[str], resource: str) -> S3Server:
    """Create an IAM user with these rights, and return the server as this user sees it."""
    statement = {"Effect": "Allow", "Action": list(actions), "Resource": resource}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    with closing(server.client("iam")) as iam:
        iam.create_user(UserName=name)
        iam.put_user_policy(UserName=name, PolicyName="rights", PolicyDocument=policy)
        key = iam.create_access_key(UserName=name)["AccessKey"]
    return S3Server(server.endpoint, key["AccessKeyId"], key["SecretAccessKey"])


def _create_bucket(client: Any, name: str) -> None:  # noqa: ANN401 - a boto3 client
    try:
        client.create_bucket(Bucket=name)
    except ClientError as error:
        known = {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}
        if error.response["Error"]["Code"] not in known:
            raise


def _read(client: Any, bucket: str, key: str) -> bytes:  # noqa: ANN401 - a boto3 client
    with closing(client.get_object(Bucket=bucket, Key=key)["Body"]) as body:
        data: bytes = body.read()
        return data


def _is_final(error: Exception) -> bool:
    """Return whether waiting cannot help: the request is wrong, and the server is ready."""
    if not isinstance(error, ClientError):
        return False
    status: int = error.response["ResponseMetadata"]["HTTPStatusCode"]
    return status < HTTPStatus.INTERNAL_SERVER_ERROR


def _retry_until_ready(attempt: Callable[[], None]) -> None:
    """Call ``attempt`` until it does not raise; after 90 s its last error is raised.

    It has to poll: a server that is starting sends no signal when it is ready.
    """
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            return attempt()
        except (ClientError, BotoCoreError) as error:
            if _is_final(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.1)
