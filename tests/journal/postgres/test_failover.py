"""A primary with a synchronous standby: nothing is promised that the standby does not have."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from payloadd.errors import RefusedError, StartError
from payloadd.journal.api import Receipt
from tests.journal.opener import ALL
from tests.journal.postgres.rig import QUICK, Member, member
from tests.support.journal import append, batch, contents, until
from tests.support.postgres import PostgresServer, need_postgres
from tests.support.tcp_proxy import tcp_proxy

if TYPE_CHECKING:
    from collections.abc import Iterator

_SYNCHRONOUS: Final = {"synchronous_standby_names": "standby"}


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[PostgresServer, PostgresServer]]:
    """Return a primary and its synchronous standby, both running."""
    need_postgres()
    with tempfile.TemporaryDirectory(prefix="payloadd-failover-") as folder:
        Path(folder).chmod(0o755)
        primary = PostgresServer(Path(folder) / "primary")
        standby = PostgresServer(Path(folder) / "standby")
        try:
            primary.create()
            primary.start()
            standby.copy_of(primary)
            standby.start()
            yield primary, standby
        finally:
            for one in (primary, standby):
                one.stop()


async def try_to_accept(one: Member, number: int, key: bytes | None = None) -> object:
    """Append a request of two jobs; return its outcome."""
    wanted = append(number, key, 2)
    return await one.outcome_of(wanted.receipt, wanted.parts, key)


async def test_a_standby_is_no_journal(pair: tuple[PostgresServer, PostgresServer]) -> None:
    """The daemon would start, and refuse every request without a reason."""
    with pytest.raises(StartError, match="the server is a standby"):
        async with member(pair[1].url()):
            pass


async def test_nothing_is_promised_while_the_standby_is_away(
    pair: tuple[PostgresServer, PostgresServer],
) -> None:
    """A 2xx would be lost with the primary: its commits do not wait for ever."""
    primary, standby = pair
    primary.execute("CREATE DATABASE away")
    primary.reconfigure(_SYNCHRONOUS)
    # Without maintenance, which would notice it before the request does.
    quick = replace(QUICK, answer_timeout=0.5, doubt_timeout=0.5, maintenance_interval=99)
    async with member(primary.url("away"), quick) as one:
        await one.accept(1, 2, b"other")  # the first key of the period empties its table
        standby.stop("fast")
        refused = await try_to_accept(one, 10, b"key")
        assert isinstance(refused, RefusedError)
        assert "not known yet" in refused.detail
        assert len(one.pipeline.received) == 2
        standby.start()
        await until(lambda: one.journal.refusal() is None)
        # The primary had committed it: it is stored, and a repetition gets its receipt.
        await until(lambda: len(one.pipeline.received) == 4)
        wanted = append(10, b"key", 2)
        assert await one.accept(20, 2, b"key", like=10) == wanted.receipt
        assert contents(await one.journal.page(*ALL)) == contents(one.pipeline.received)


async def test_a_standby_that_is_promoted_has_all_that_was_promised(
    pair: tuple[PostgresServer, PostgresServer],
) -> None:
    """Payloads with a 2xx would be lost with the machine of the database."""
    primary, standby = pair
    primary.execute("CREATE DATABASE promoted")
    primary.reconfigure(_SYNCHRONOUS)
    async with tcp_proxy(primary.port) as proxy, member(standby.url("promoted", proxy.port)) as one:
        receipt = await one.accept(1, 5, b"key")
        jobs = list(one.pipeline.received)
        await one.journal.seal(batch(*jobs[:2]))
        await one.accept(10, 3)
        primary.kill()
        proxy.cut()
        await until(lambda: one.shared.state.in_trouble)
        standby.promote()
        proxy.target = standby.port
        proxy.restore()
        await until(lambda: one.journal.refusal() is None)
        assert one.lanes == [1]
        assert await one.accept(20, 5, b"key", like=1) == receipt
        assert isinstance(await try_to_accept(one, 30), Receipt)
        assert contents(await one.journal.page(*ALL)) == contents(one.pipeline.received)
        one.journal.settle(batch(*jobs[:2]))
        await one.journal.pulse()
        assert contents(await one.journal.page(*ALL)) == contents(one.pipeline.received[2:])
