"""The suite of all journals finds journals that break a promise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest
import trio

from payloadd.errors import PayloaddError
from tests.journal import faulty_journals as faulty
from tests.journal import opener as opening
from tests.journal import test_contract as suite
from tests.journal import test_contract_durable as durable
from tests.journal.opener import Opener

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.journal.opener import OpenFunction

    Check = Callable[[Opener], Awaitable[None]]

pytestmark = [pytest.mark.large, pytest.mark.no_cover]

_FOUND: Final = (AssertionError, PayloaddError, trio.TooSlowError)
"""The errors by which the suite reports a fault; others would be faults of the test."""
_DISK: Final = {"DURABILITY": "disk"}
_DEAD: Final = durable.test_dead_letters_can_be_listed_tried_again_and_dropped
_FAULTS: Final[list[tuple[OpenFunction, Check]]] = [
    (faulty.writes_at_the_end, durable.test_what_was_promised_is_there_after_a_kill),
    (faulty.throws_dead_letters_away, durable.test_what_was_promised_is_there_after_a_kill),
    (faulty.throws_dead_letters_away, _DEAD),
    (faulty.forgets_seals, durable.test_what_was_promised_is_there_after_a_kill),
    (faulty.forgets_layouts, durable.test_jobs_keep_the_layout_that_they_were_accepted_under),
    (faulty.knows_one_stream, suite.test_each_stream_numbers_its_jobs_by_itself),
    (faulty.gives_numbers_anew, durable.test_a_stream_keeps_its_number_and_its_jobs),
    (faulty.hides_its_age, durable.test_the_age_of_the_oldest_job_is_reported),
    (faulty.keeps_keys_for_ever, suite.test_a_key_is_known_for_a_day),
]
_ANSWERS: Final = "requests_are_answered_after_the_sync", "answered before the sync"
_SEALS: Final = "seals_wait_for_the_sync", "sealed before the sync"
_FAILURES: Final = "failed_writes_are_refused_and_end"
_DISK_FAULTS: Final[list[tuple[OpenFunction, str, str]]] = [
    (faulty.answers_at_once, *_ANSWERS),
    (faulty.does_not_sync, *_ANSWERS),
    (faulty.does_not_sync, *_SEALS),
    (faulty.seals_later, *_SEALS),
    (faulty.forgets_seals, *_SEALS),
    (faulty.answers_failed_writes, _FAILURES, "a write that failed was accepted"),
    (faulty.seals_later, _FAILURES, "sealed although the disk refuses writes"),
    (faulty.stays_in_trouble, _FAILURES, "TooSlowError"),
    (faulty.has_room, "large_requests_wait_for_room", "room for any number of requests"),
]


def name_of(function: object) -> str:
    """Return the name of a function."""
    return str(getattr(function, "__name__", function))


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait long for a report that a faulty journal never makes."""
    monkeypatch.setattr(opening, "TEST_TIMEOUT", 5)
    monkeypatch.setattr("tests.support.journal.TEST_TIMEOUT", 3)


@pytest.mark.parametrize(
    ("fault", "check"), _FAULTS, ids=[f"{name_of(one)}-{name_of(two)}" for one, two in _FAULTS]
)
async def test_a_faulty_journal_fails(tmp_path: Path, fault: OpenFunction, check: Check) -> None:
    """A new journal could break the promise and pass the suite."""
    with pytest.raises((*_FOUND, ExceptionGroup)) as caught:
        await check(Opener(tmp_path / "state", _DISK, fault))
    assert all(isinstance(one, _FOUND) for one in leaves(caught.value))


def leaves(error: Exception) -> list[Exception]:
    """Return the errors of a group and of the groups in it, or the error itself."""
    if isinstance(error, ExceptionGroup):
        return [leaf for one in error.exceptions for leaf in leaves(one)]
    return [error]


@pytest.mark.usefixtures("syncs_on_command")
@pytest.mark.parametrize(("fault", "scenario", "message"), _DISK_FAULTS)
def test_a_journal_that_is_faulty_on_a_faulty_disk_fails(
    tmp_path: Path, fault: OpenFunction, scenario: str, message: str
) -> None:
    """As above, for promises about the disk."""
    with pytest.raises(AssertionError, match=message):
        durable.run_scenario(Opener(tmp_path / "state", _DISK, fault), scenario)
