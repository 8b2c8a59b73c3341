"""``payloadd check``: what is enough, what it notes, and what it calls a failure."""

from __future__ import annotations

import socket
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
import trio

from payloadd.cli.check import check
from payloadd.config.settings import load
from tests.support.daemon import run_command
from tests.support.s3 import moto_user
from tests.support.store import ACCESS_DENIED, FakeS3, Refusal, fake_s3
from tests.support.store_behaviours import (
    PORTAL,
    Answer,
    ByMethod,
    ByPrefix,
    InTurn,
    Skewed,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.s3 import S3Server
    from tests.support.store_behaviours import Behaviour

NO_BUCKET = Refusal(404, "NoSuchBucket")


@pytest.fixture
def state(tmp_path: Path) -> dict[str, str]:
    """Return the settings that keep a journal in the folder of the test."""
    return {"STATE_DIR": str(tmp_path / "state"), "UPLOAD_TIMEOUT": "20s"}


async def run(settings: dict[str, str], *, create: bool = False) -> tuple[bool, list[str]]:
    """Return whether ``check`` succeeded, and its lines."""
    lines: list[str] = []
    good = await check(load(settings), lines.append, create=create)
    return good, lines


async def run_against(
    behaviour: Behaviour, state: dict[str, str], **settings: str
) -> tuple[bool, str, FakeS3]:
    """Return the result and the output of ``check`` with a store that behaves so, and the store."""
    async with fake_s3(behaviour) as store:
        good, lines = await run({**state, **store.environ, **settings})
    return good, "\n".join(lines), store


async def test_a_store_with_all_rights_is_ok_and_nothing_is_left(state: dict[str, str]) -> None:
    """An operator would be told of problems that are none, or find a probe in the bucket."""
    good, said, store = await run_against("take", state)
    assert good
    assert [line.split()[0] for line in said.splitlines()] == ["ok"] * 8, said
    assert store.objects == {}
    assert [seen.method for seen in store.seen] == ["PUT", "HEAD", "DELETE"]


async def test_the_right_to_put_is_enough(state: dict[str, str]) -> None:
    """An operator would give the daemon more rights than it needs."""
    good, said, store = await run_against(ByMethod({"PUT": "take"}, ACCESS_DENIED), state)
    assert good, said
    (path,) = store.objects
    key = path.removeprefix("/bucket/")
    why = "(AccessDenied: HTTP 403, The test says so., request id 4442587FB7D0A2F9)"
    notes = [line for line in said.splitlines() if line.startswith("note")]
    assert notes == [
        "note    read         not allowed, and not needed",
        f"note    delete       not needed, and refused: {key} stays {why}",
    ]


@pytest.mark.parametrize(
    ("allowed", "settings"),
    [
        ("/bucket/logs/", {"STORE_URL": "s3://bucket/logs"}),
        ("/bucket/logs/", {"KEY_TEMPLATE": "logs/{date}/{id}.ndjson"}),
        ("/bucket/a/b/", {"STORE_URL": "s3://bucket/a", "KEY_TEMPLATE": "b/{shard}/{id}"}),
        ("/bucket/dt=", {"KEY_TEMPLATE": "dt={date}/{id}.ndjson"}),
        ("/bucket/x-{host}/", {"KEY_TEMPLATE": "x-{host}/{date}/{id}"}),
        ("/bucket/20", {"KEY_TEMPLATE": "{date}/{id}"}),
    ],
)
async def test_the_object_is_written_where_real_ones_will_be(
    state: dict[str, str], allowed: str, settings: dict[str, str]
) -> None:
    """`check` would fail where the daemon stores: rights are often limited to a prefix."""
    prefix = allowed.format(host=socket.gethostname())
    behaviour = ByPrefix({prefix: "take"}, otherwise=ACCESS_DENIED)
    good, said, store = await run_against(behaviour, state, **settings)
    assert good, said
    assert store.puts.total() == 1


async def test_the_object_is_in_no_folder_of_data_if_the_rights_allow_that(
    state: dict[str, str],
) -> None:
    """A reader of the day's folder would take the object for data."""
    behaviour = ByMethod({"DELETE": ACCESS_DENIED})
    _, _, store = await run_against(behaviour, state, KEY_TEMPLATE="a/{date}/{hour}/{id}.ndjson")
    (path,) = store.objects
    assert path.startswith("/bucket/a/payloadd-check-")
    assert path.endswith(".ndjson")


@pytest.mark.parametrize("settings", [{}, {"STREAMS": "clicks,errors"}])
async def test_the_object_of_a_check_is_beside_the_partitions(
    state: dict[str, str], settings: dict[str, str]
) -> None:
    """Athena or Spark would take the probe for data, or its name for a partition."""
    behaviour = ByMethod({"DELETE": ACCESS_DENIED})
    good, said, store = await run_against(behaviour, state, **settings)
    assert good, said
    (path,) = store.objects
    assert path.startswith("/bucket/payloadd-check-")
    streams = "ok      streams      default, clicks, errors\n"
    example = "ok      keys         such as " + ("clicks/dt=" if settings else "dt=")
    assert (streams in said) is bool(settings)
    assert example in said


async def test_streams_of_tokens_that_do_not_exist_are_noted(
    state: dict[str, str], tmp_path: Path
) -> None:
    """An operator would learn of a typing error from clients that are refused."""
    (tmp_path / "tokens").write_text(f"ci:{'0' * 64}:clicks,gone\n")
    tokens = {"AUTH_TOKENS": str(tmp_path / "tokens"), "STREAMS": "clicks"}
    good, said, _ = await run_against("take", state, **tokens)
    assert good, said
    expected = "note    tokens       ci may write to gone, which STREAMS does not name\n"
    assert expected in said


async def test_a_key_template_of_the_greatest_length_is_checked(state: dict[str, str]) -> None:
    """`check` would write a key that is too long, although those of the daemon are not."""
    folders = "/".join(["f" * 240] * 4)
    template = f"{folders}/{'g' * 15}/{{id}}"
    good, said, store = await run_against(
        ByMethod({"DELETE": ACCESS_DENIED}), state, KEY_TEMPLATE=template
    )
    assert good, said
    (path,) = store.objects
    assert len(path.removeprefix("/bucket/")) < 1024
    assert "payloadd-check" not in path


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Refusal(404, "NoSuchKey"), "is not there"),
        (Answer(200, b"1234", {"etag": '"x"'}), "is another object"),
        (Answer(200, b"{}\n", {"etag": '"x"', "x-amz-meta-first": "other"}), "is another object"),
    ],
)
async def test_another_object_than_the_written_one_is_a_failure(
    state: dict[str, str], answer: Answer | Refusal, words: str
) -> None:
    """`check` would succeed with a server that confirms objects and does not keep them."""
    good, said, _ = await run_against(ByMethod({"HEAD": answer}), state)
    assert not good
    line = said.splitlines()[-1]
    assert line.startswith("failed  read         WRONG_ANSWER: ")
    assert words in line


async def test_a_web_server_that_answers_everything_is_a_failure(state: dict[str, str]) -> None:
    """A captive portal would be taken for a store."""
    good, said, _ = await run_against(PORTAL, state)
    assert not good
    assert said.splitlines()[-1].startswith("failed  write        NOT_S3: HTTP 200 from ")


async def test_a_store_that_fails_while_it_is_read_is_a_failure(state: dict[str, str]) -> None:
    """`check` would call a broken store readable."""
    good, said, _ = await run_against(ByMethod({"HEAD": Refusal(500, "InternalError")}), state)
    assert not good
    assert "failed  read         HTTP500" in said


async def test_a_store_that_hangs_is_named_after_the_upload_timeout(state: dict[str, str]) -> None:
    """`check` would never end."""
    behaviour = ByMethod({"DELETE": "hang"})
    good, said, _ = await run_against(behaviour, state, UPLOAD_TIMEOUT="1s")
    assert not good
    assert said.endswith("failed  delete       no answer within UPLOAD_TIMEOUT (1 s)")


async def test_a_learned_region_is_named(state: dict[str, str]) -> None:
    """Every start of the daemon would begin with a refused request, and nothing would say why."""
    wrong = Refusal(400, "AuthorizationHeaderMalformed", extra="<Region>eu-west-3</Region>")
    good, said, _ = await run_against(InTurn((wrong, "take")), state)
    assert good
    expected = "note    learnt       region: eu-west-3, not us-east-1; set AWS_REGION=eu-west-3"
    assert said.splitlines()[-1] == expected


@pytest.mark.parametrize(("seconds", "word"), [(7200, "ahead of"), (-7200, "behind")])
async def test_a_learned_clock_is_named(state: dict[str, str], seconds: float, word: str) -> None:
    """The wrong clock of the machine would stay: keys have its dates."""
    good, said, _ = await run_against(Skewed(seconds), state)
    assert good
    line = said.splitlines()[-1]
    assert line.startswith("note    learnt       clock: the store's is 7")
    assert line.endswith(f" s {word} this machine's")


async def test_a_missing_bucket_is_created_only_where_asked(state: dict[str, str]) -> None:
    """A typing error in a name would create a bucket, or `--create` would not."""
    async with fake_s3(NO_BUCKET) as store:
        good, lines = await run({**state, **store.environ})
        assert not good
        assert lines[-1].startswith("failed  write        NoSuchBucket: ")
        assert lines[-1].endswith("(payloadd check --create creates it)")
        assert [seen.path for seen in store.seen] == [store.seen[0].path]

        store.seen.clear()
        store.begin(InTurn((NO_BUCKET, "take")))
        good, lines = await run({**state, **store.environ}, create=True)
    assert good, lines
    assert "ok      create       s3://bucket" in "\n".join(lines)
    assert [(seen.method, seen.path) for seen in store.seen][1] == ("PUT", "/bucket/")


async def test_a_name_that_another_account_has_is_a_failure(state: dict[str, str]) -> None:
    """An operator would not learn that the bucket is another account's."""
    taken = Refusal(409, "BucketAlreadyExists")
    async with fake_s3(InTurn((NO_BUCKET, taken))) as store:
        good, lines = await run({**state, **store.environ}, create=True)
    assert not good
    assert "BucketAlreadyExists" in lines[-1]


@pytest.mark.parametrize("region", ["us-east-1", "eu-west-3"])
async def test_moto_creates_the_bucket_in_its_region(
    moto: S3Server, state: dict[str, str], region: str
) -> None:
    """`--create` would work in one region alone."""
    name = f"created-in-{region}"
    env = {**state, **moto.environ, "AWS_REGION": region, "STORE_URL": f"s3://{name}"}
    for _ in range(2):
        good, lines = await run(env, create=True)
        assert good, lines
    with closing(moto.client()) as client:
        location = client.get_bucket_location(Bucket=name)["LocationConstraint"]
    assert location == (None if region == "us-east-1" else region)


async def test_seaweedfs_creates_the_bucket_without_a_known_region(
    seaweed: S3Server, state: dict[str, str]
) -> None:
    """`--create` would fail with servers that have no regions."""
    env = {**state, **seaweed.environ, "AWS_REGION": "garage", "STORE_URL": "s3://created"}
    good, lines = await run(env, create=True)
    assert good, lines
    assert await trio.to_thread.run_sync(seaweed.keys, "created") == []


async def test_the_port_of_another_server_is_named(
    seaweed: S3Server, state: dict[str, str]
) -> None:
    """SeaweedFS's filer confirms a PUT to its own port, and the bucket stays empty."""
    assert seaweed.process is not None
    bucket = await trio.to_thread.run_sync(seaweed.make_bucket, "filer-port")
    env = {**state, **seaweed.environ, "STORE_URL": f"s3://{bucket}"}
    good, lines = await run({**env, "AWS_ENDPOINT_URL_S3": seaweed.process.filer_url})
    assert not good, lines
    assert lines[-1].startswith("failed  write        NOT_S3: HTTP 201 from ")


ARN = "arn:aws:s3:::least/logs/*"


@pytest.mark.parametrize(
    ("actions", "states"),
    [
        (["s3:PutObject"], {"write": "ok", "read": "note", "delete": "note"}),
        (["s3:PutObject", "s3:GetObject"], {"write": "ok", "read": "ok", "delete": "note"}),
        (["s3:PutObject", "s3:DeleteObject"], {"write": "ok", "read": "note", "delete": "ok"}),
        (
            ["s3:PutObject", "s3:GetObject", "s3:DeleteObject"],
            {"write": "ok", "read": "ok", "delete": "ok"},
        ),
    ],
)
async def test_the_policies_of_the_readme_are_enough(
    moto: S3Server, state: dict[str, str], actions: list[str], states: dict[str, str]
) -> None:
    """The documented policy would not be enough, or would give more rights than needed."""
    moto.make_bucket("least")
    user = moto_user(moto, "-".join(actions).replace(":", "."), actions, ARN)
    good, lines = await run({**state, **user.environ, "STORE_URL": "s3://least/logs"})
    assert good, lines
    found = {line.split()[1]: line.split()[0] for line in lines}
    assert {step: found[step] for step in states} == states


async def test_no_right_to_put_is_a_failure(moto: S3Server, state: dict[str, str]) -> None:
    """`check` would succeed, and no payload would be stored."""
    moto.make_bucket("least")
    user = moto_user(moto, "reader", ["s3:GetObject"], ARN)
    good, lines = await run({**state, **user.environ, "STORE_URL": "s3://least/logs"})
    assert not good
    assert lines[-1].startswith("failed  write        AccessDenied: ")


async def test_a_folder_is_created_and_its_file_is_read_back(
    tmp_path: Path, state: dict[str, str]
) -> None:
    """`check` would fail at the first start, or leave a file behind."""
    objects = tmp_path / "new" / "objects"
    for ending in (" (created)", ""):
        good, lines = await run({**state, "STORE_URL": f"file://{objects}"}, create=True)
        assert good, lines
        assert f"ok      store        file://{objects}{ending}" in lines
        assert any(line.startswith("ok      read ") for line in lines)
    assert list(objects.iterdir()) == []


async def test_the_command_has_the_option_and_the_exit_statuses(tmp_path: Path) -> None:
    """A script could not create a bucket, or could not tell whether it may start the daemon."""
    async with fake_s3(InTurn((NO_BUCKET, NO_BUCKET, "take"))) as store:
        refused = await run_command("check", folder=tmp_path, env=store.environ)
        created = await run_command("check", "--create", folder=tmp_path, env=store.environ)
    assert (refused.returncode, created.returncode) == (78, 0), refused.stdout + created.stdout
