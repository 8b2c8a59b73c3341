"""Use a journal at random, under strace(1): ``python -m tests.crash.power_cut_work FOLDER SEED``.

An odd seed uses two streams.

Before and after each commit the process writes a report to /dev/null, as JSON, so that strace
records it between the other system calls.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from payloadd.journal.api import Receipt
from payloadd.journal.sqlite import segments
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.operations import Append, Seal, Settle
from payloadd.journal.sqlite.schema import FILE
from payloadd.model.job import Batch, Job, Part
from payloadd.model.layout import Layout
from tests.crash.power_cut import REPORT_FILE
from tests.support.clients import seeded
from tests.support.journal import compact_segments, id_of

if TYPE_CHECKING:
    import random

_STEPS: Final = 60
_LARGE: Final = 5000
_LAYOUT: Final = Layout("{id}", "", "none", alone=False)


class _Work:
    def __init__(self, folder: Path, chance: random.Random, streams: int) -> None:
        self._path = folder / FILE
        self._streams = streams
        self._chance = chance
        self._number = 0
        self._waiting: list[list[Job]] = [[] for _ in range(streams)]
        """By stream."""
        self._file = os.open(REPORT_FILE, os.O_WRONLY)
        self._database = self._open()

    def _open(self) -> Database:
        database = Database(self._path)
        names = database.open_streams(("default", "clicks")[: self._streams])
        others = dict.fromkeys(names, _LAYOUT)
        database.layouts(others.pop(0), others)
        database._connection.execute("PRAGMA wal_autocheckpoint = 15")
        return database

    def run(self) -> None:
        """Do random operations; the journal is not closed at the end."""
        for step in range(_STEPS):
            match self._chance.randrange(8):
                case 0 | 1 | 2 | 3:
                    self._append()
                case 4 | 5 if any(self._waiting):
                    self._settle()
                case 6:
                    self._database.high_water.sync()
                case _:
                    compact_segments(self._database)
            if step == _STEPS // 2:
                self._database.close()
                self._database = self._open()

    def _append(self) -> None:
        large = self._chance.random() < 0.4
        parts = []
        for _ in range(self._chance.randrange(1, 4)):
            self._number += 1
            padding = "x" * (_LARGE if large else self._chance.randrange(600))
            lines = f'{{"n":{self._number},"p":"{padding}"}}\n'.encode()
            parts.append(Part(id_of(self._number), lines, 1))
        stream = self._chance.randrange(self._streams)
        request = Append(Receipt(parts[0].id, len(parts)), parts, stream=stream)
        numbers = [part.id.int & 0xFFFF for part in parts]
        self._report("accepting", numbers)
        self._database.commit([request])
        self._report("accepted", numbers)
        self._waiting[stream] += request.jobs

    def _settle(self) -> None:
        waiting = self._chance.choice([one for one in self._waiting if one])
        jobs = [waiting.pop(0)]
        # A start leaves a gap in the numbers, which ends a batch.
        while waiting and len(jobs) < self._chance.randrange(1, 5):
            if waiting[0].seq != jobs[-1].seq + 1:
                break
            jobs.append(waiting.pop(0))
        batch = Batch(tuple(jobs), f"k{jobs[0].seq}", "none", sealed=True)
        self._database.commit([Seal(batch)])
        numbers = [job.id.int & 0xFFFF for job in jobs]
        self._report("settling", numbers)
        self._database.commit([Settle(batch)])
        self._report("settled", numbers)

    def _report(self, state: str, numbers: list[int]) -> None:
        os.write(self._file, json.dumps([state, numbers]).encode())


if __name__ == "__main__":
    segments.WORTH_A_SYNC = _LARGE  # type: ignore[misc]
    segments.SEGMENT_BYTES = 4 * _LARGE  # type: ignore[misc]
    seed = int(sys.argv[2])
    _Work(Path(sys.argv[1]), seeded(seed), 1 + seed % 2).run()
    os._exit(0)
