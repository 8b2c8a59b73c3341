"""A guess at whether bytes are a whole request, for those that wait to be parsed: pure."""

from __future__ import annotations

import re
from typing import Final

_END: Final = b"\r\n\r\n"
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,12})[ \t]*\r\n")


def may_be_whole(data: bytes) -> bool:
    """Return whether ``data`` looks like an HTTP/1.1 request to its end.

    Nothing but the order in which connections are given up depends on it: a client that sent
    all of its request waits for this side.
    """
    head, end, body = data.partition(_END)
    if not end:
        return False
    head = head.lower() + b"\r\n"
    if b"\r\ntransfer-encoding:" in head:
        return body.endswith(b"0" + _END)
    length = _LENGTH.search(head)
    return length is None or len(body) >= int(length[1])
