"""The entry point of the command ``payloadd``, also as ``python -m payloadd``."""

from __future__ import annotations

import gc
from typing import Final

_COLLECT_AFTER: Final = 200_000
"""New containers. The imports make fewer, and nearly all of them stay: with Python's default, 700,
more than a hundred collections would visit them."""


def main() -> None:
    """Run the command ``payloadd`` with the arguments of the process."""
    gc.set_threshold(_COLLECT_AFTER)
    from payloadd.cli.main import main as command  # noqa: PLC0415 - after the threshold is set

    # Otherwise the interpreter would visit them all at its end.
    gc.freeze()
    command(prog_name="payloadd")


if __name__ == "__main__":
    main()
