"""The texts that are rendered from a snapshot."""

from __future__ import annotations

from dataclasses import replace

from payloadd.observe.status import (
    JournalFigures,
    JournalStatus,
    PayloadFigures,
    QueueFigures,
    Status,
    StreamStatus,
    Trouble,
    drained_fields,
    draining_fields,
    journal_document,
    journal_lines,
    status_line,
    trouble_documents,
)

SERVING = Status(
    "serving",
    PayloadFigures(accepted=9, stored=3, dead=1, open=5),
    QueueFigures(jobs=4, bytes=40),
    JournalFigures(jobs=7, payloads=8, bytes=90),
    busy_workers=2,
)


def test_the_status_line_has_phase_and_figures() -> None:
    """`systemctl status` would not show whether payloads are stored."""
    assert status_line(SERVING) == "serving: 3 payloads stored, 4 jobs queued, 7 jobs journaled"


def test_the_status_line_names_each_trouble() -> None:
    """An administrator would see a service that runs and stores nothing, without a reason."""
    troubles = {
        "store": Trouble("AccessDenied", "AccessDenied: no", 0.0),
        "journal": Trouble("ENOSPC", "disk full", 0.0),
    }
    assert status_line(replace(SERVING, troubles=troubles)).endswith(
        "; waiting for the store: AccessDenied: no; waiting for the journal: disk full"
    )


def test_the_last_status_line_has_the_figures_of_the_drained_event() -> None:
    """Log and `systemctl status` would disagree about lost payloads."""
    status = Status("drained", PayloadFigures(accepted=9, stored=3, open=5, journaled=4))
    assert drained_fields(status) == {"stored": 3, "journaled": 4, "lost": 1}
    assert status_line(status) == "drained: 3 stored, 4 journaled, 1 lost"


def test_open_payloads_are_lost_only_once_the_journal_is_closed() -> None:
    """A status page would show lost payloads on a daemon that loses none."""
    payloads = PayloadFigures(accepted=9, open=5, journaled=0, unkept=2)
    assert Status("serving", payloads).lost == 2
    assert Status("draining", payloads).lost == 2
    assert Status("drained", payloads).lost == 7
    assert Status("drained", replace(payloads, journaled=6)).lost == 2


def test_troubles_are_json_with_times_in_utc() -> None:
    """An operator would have to search the log for the reason and the start of a trouble."""
    status = Status(troubles={"store": Trouble("AccessDenied", "403", 1_704_067_200.5)})
    assert trouble_documents(status) == [
        {
            "part": "store",
            "code": "AccessDenied",
            "reason": "403",
            "since": "2024-01-01T00:00:00.500+00:00",
        }
    ]
    assert trouble_documents(Status()) == []


def test_a_drain_names_its_work_and_its_troubles() -> None:
    """An operator would see a daemon that does not stop, and not know why."""
    status = replace(SERVING, troubles={"store": Trouble("AccessDenied", "AccessDenied: no", 0.0)})
    assert draining_fields(status) == {
        "open": 5,
        "uploading": 2,
        "waits_for": {"store": "AccessDenied: no"},
    }


def test_the_status_of_a_journal_is_two_columns_or_json() -> None:
    """`payloadd journal status` would name a figure differently for people and for machines."""
    status = JournalStatus(None, 1, 2, 3, 4.5, 5, 6, 7, 8, 9, 10, 11)
    document = journal_document(status)
    assert document.pop("process") is None
    assert document.pop("streams") == {}
    first, *lines = journal_lines(status)
    assert first == "daemon            not running"
    assert [line[18:] for line in lines] == [str(value) for value in document.values()]
    assert [line[:18].strip().replace(" ", "_") for line in lines] == [*document]
    assert journal_lines(replace(status, process=17))[0] == "daemon            process 17"


def test_streams_are_lines_of_the_status_where_there_are_several() -> None:
    """An operator could not see which stream has the backlog."""
    figures = {"default": StreamStatus(1, 2, 3, 0.5, 0), "clicks": StreamStatus(4, 5, 6, 7.5, 8)}
    both = JournalStatus(None, 1, 2, 3, 4.5, 5, 6, 7, 8, 9, 10, 11, figures)
    one = replace(both, streams={"default": figures["default"]})
    assert journal_document(both)["streams"]["clicks"]["dead_letters"] == 8
    assert [line for line in journal_lines(one) if "default" in line] == []
    assert journal_lines(both)[-1] == (
        "stream clicks: jobs 4, payloads 5, bytes 6, oldest seconds 7.5, dead letters 8"
    )
