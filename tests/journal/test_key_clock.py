"""Idempotency-Keys live for a day by elapsed time, whatever happens to the system's clock."""

from __future__ import annotations

import zlib
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pytest

from payloadd.journal.key_clock import KEEP, MOST_STEP
from payloadd.journal.sqlite import high_water, high_water_record
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.operations import Expire
from tests.support.journal import append

if TYPE_CHECKING:
    from pathlib import Path

_DAY: Final = 24 * 3600


@dataclass
class Machine:
    """The clocks of a machine, in seconds, and its boot id."""

    system: float = 1_700_000_000.0
    uptime: float = 1_000.0
    boot: bytes = b"first boot......"

    def run(self, seconds: float) -> None:
        """Let time pass."""
        self.system += seconds
        self.uptime += seconds

    def reboot(self, system: float) -> None:
        """Start again with another boot id and the system's clock at ``system``."""
        self.system, self.uptime, self.boot = system, 10.0, b"second boot....."

    def time(self) -> float:
        """Return the system's time, in place of time.time()."""
        return self.system

    CLOCK_BOOTTIME = 7

    def clock_gettime_ns(self, _: int) -> int:
        """Return the time since boot in nanoseconds."""
        return int(self.uptime * 10**9)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Return a machine whose clocks the journal reads."""
    one = Machine()
    monkeypatch.setattr("payloadd.journal.key_clock.time", one)
    monkeypatch.setattr(high_water, "_boot_id", lambda: one.boot)
    return one


def is_known(database: Database) -> bool:
    """Return whether the key of the first request is known."""
    again = append(9, b"key", like=1)
    database.commit([Expire(), again])
    return again.earlier is not None


@pytest.mark.parametrize("step", [2 * _DAY, -2 * _DAY])
def test_a_step_of_the_clock_forgets_no_key(path: Path, machine: Machine, step: float) -> None:
    """A request that is repeated after the time server answered would be stored twice."""
    with closing(Database(path)) as database:
        database.commit([append(1, b"key")])
        machine.run(5)
        machine.system += step
        assert is_known(database)
        machine.run(KEEP - 6)
        assert is_known(database)
        machine.run(2)
        assert not is_known(database)


def test_keys_expire_on_a_machine_that_believes_to_be_in_1970(path: Path, machine: Machine) -> None:
    """A machine without a battery for its clock would take milliseconds for seconds."""
    machine.system = 5.0
    with closing(Database(path)) as database:
        database.commit([append(1, b"key")])
        machine.run(KEEP - 1)
        assert is_known(database)
        machine.run(2)
        assert not is_known(database)


@pytest.mark.parametrize("step", [2 * _DAY, -2 * _DAY])
def test_time_between_two_runs_of_one_boot_counts_exactly(
    path: Path, machine: Machine, step: float
) -> None:
    """A restart at the moment of a step would forget all keys."""
    with closing(Database(path)) as database:
        database.commit([append(1, b"key")])
        machine.run(10)
    machine.run(KEEP - 20)
    machine.system += step
    with closing(Database(path)) as database:
        assert is_known(database)
        machine.run(11)
        assert not is_known(database)


@pytest.mark.parametrize(
    ("off", "lifetime"),
    [(600, KEEP - 610), (2 * _DAY, KEEP - 10 - MOST_STEP), (-2 * _DAY, KEEP - 10)],
)
def test_a_reboot_moves_the_clock_by_a_bounded_step(
    path: Path, machine: Machine, off: float, lifetime: float
) -> None:
    """A machine whose clock is wrong after a boot would forget all keys."""
    with closing(Database(path)) as database:
        database.commit([append(1, b"key")])
        machine.run(10)
    machine.reboot(machine.system + off)
    with closing(Database(path)) as database:
        machine.run(lifetime - 1)
        assert is_known(database)
        machine.run(2)
        assert not is_known(database)


def test_a_record_without_the_two_times_is_read(path: Path, machine: Machine) -> None:
    """The upgrade of a journal would report that its payloads may be missing."""
    with closing(Database(path)) as database:
        database.commit([append(1, b"key")])
        totals = database.totals
    former = high_water_record._FORMER_BODY.pack(
        *(high_water_record._FORMER_MAGIC, 9, machine.boot, database.high_water.identity),
        *(totals.next, totals.accepted, totals.payloads, 0, 1),
    )
    record = former + high_water_record._CHECKSUM.pack(zlib.crc32(former))
    path.with_suffix(".high").write_bytes(record)
    found = high_water_record.read(path)
    assert found is not None
    assert (found.number, found.time, found.uptime) == (9, 0, 0)
    with closing(Database(path)) as database:
        assert not database.high_water.unreadable
        assert is_known(database)
