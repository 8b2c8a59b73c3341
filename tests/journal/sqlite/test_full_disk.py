"""A disk that is full of what stored jobs have left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from payloadd.errors import RefusedError
from payloadd.journal.api import Receipt
from payloadd.journal.sqlite.journal import Tuning
from payloadd.journal.sqlite.segments import FOLDER, LARGE
from payloadd.model.job import Part
from tests.crash.disk import small_disk
from tests.support.journal import TEST_TIMEOUT, batch, id_of, open_rig, until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.journal import JournalRig

_NO_MAINTENANCE: Final = Tuning(maintenance_interval=TEST_TIMEOUT)
_MIB: Final = 2**20


async def accept_large(rig: JournalRig, number: int, mib: int) -> Receipt:
    """Append a request of so many MiB that are written to a segment; return the receipt."""
    lines = b'"' + b"x" * (_MIB // 16) + b'"\n'
    parts = [Part(id_of(number + index), lines, 1) for index in range(16 * mib)]
    assert len(lines) > LARGE
    outcomes: list[Receipt | RefusedError] = []
    rig.journal.append(Receipt(id_of(number), len(parts)), parts, None, outcomes.append)
    await until(lambda: outcomes)
    if isinstance(outcomes[0], Receipt):
        return outcomes[0]
    raise outcomes[0]


@pytest.mark.parametrize("are_stored", [True, False])
async def test_a_disk_full_of_stored_payloads_takes_others(
    tmp_path: Path, *, are_stored: bool
) -> None:
    """Clients would be refused until maintenance, once a second, has deleted the segments."""
    with small_disk(tmp_path / "disk", "64m") as disk:
        async with open_rig(disk.path / "journal.db", tuning=_NO_MAINTENANCE) as rig:
            await accept_large(rig, 1, 24)
            if are_stored:
                jobs = await rig.journal.page(0, 1000, 64 * _MIB)
                rig.journal.settle(batch(*jobs, sealed=False))
                await rig.journal.pulse()
            disk.fill(0)
            if are_stored:
                await accept_large(rig, 1000, 6)
                assert rig.health.trouble("journal") is None
                assert len(list((disk.path / FOLDER).iterdir())) == 1
            else:
                with pytest.raises(RefusedError, match="No space left"):
                    await accept_large(rig, 1000, 6)
                assert rig.health.trouble("journal") is not None
            disk.free(0)
