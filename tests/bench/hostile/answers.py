"""Count the HTTP/1.1 answers that hostile clients get."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import MutableMapping

_END: Final = b"\r\n\r\n"
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CODE: Final = re.compile(rb'"code":"([A-Z_]+)"')


def name_of(status: int, body: bytes) -> str:
    """Return the name under which an answer is counted: ``202``, ``503 BUSY``."""
    code = _CODE.search(body) if status >= 400 else None
    return str(status) if code is None else f"{status} {code[1].decode()}"


class AnswerReader:
    """Split a stream into HTTP/1.1 answers with a Content-Length, and count them."""

    def __init__(self, tally: MutableMapping[str, int]) -> None:
        self._tally = tally
        self._data = b""

    def feed(self, data: bytes) -> int:
        """Read received bytes; returns the number of answers that they complete."""
        data = self._data + data
        start = count = 0
        while (end := data.find(_END, start)) >= 0:
            length = _LENGTH.search(data, start, end + 2)
            body = end + len(_END)
            stop = body + (int(length[1]) if length else 0)
            if stop > len(data):
                break
            name = name_of(int(data[start + 9 : start + 12]), data[body:stop])
            self._tally[name] = self._tally.get(name, 0) + 1
            count += 1
            start = stop
        self._data = data[start:]
        return count
