"""The daemon without its fast path: ``python -m tests.support.hypercorn_only serve``."""

from __future__ import annotations

from payloadd import service
from payloadd.cli.main import main

if __name__ == "__main__":
    vars(service)["FastPath"] = lambda *_: None
    main()
