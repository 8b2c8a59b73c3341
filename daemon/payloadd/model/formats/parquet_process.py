"""The process that encodes Parquet: it serves one request at a time, until its socket is closed.

pyarrow is imported by this process alone: it takes memory and time, and a thread of the daemon that
uses it would hold Python's lock.
"""

from __future__ import annotations

import sys
from contextlib import suppress

from payloadd.child_process import serve_as_child
from payloadd.model.formats.parquet_messages import (
    receive_jobs,
    receive_options,
    send_failure,
    send_result,
)


def main(file: int) -> None:
    """Encode the jobs that arrive on the socket ``file`` until it is closed."""
    with serve_as_child(file) as sock, suppress(EOFError, ConnectionError):
        options = receive_options(sock)
        try:
            from payloadd.model.formats.parquet_table import encode_table  # noqa: PLC0415
        except Exception as error:  # noqa: BLE001 - a broken library raises anything
            send_failure(sock, f"pyarrow cannot be used: {error!r}")
            return
        send_result(sock, b"", {})
        while True:
            jobs = receive_jobs(sock)
            try:
                content, misfits = encode_table(jobs, options)
            except Exception as error:  # noqa: BLE001 - the next batch may be another one
                send_failure(sock, repr(error)[:500])
            else:
                send_result(sock, memoryview(content), misfits)
            del jobs


if __name__ == "__main__":
    main(int(sys.argv[1]))
