"""Run the command ``payloadd`` as ``python -m payloadd``."""

from __future__ import annotations

from payloadd.cli.main import main

if __name__ == "__main__":
    main(prog_name="payloadd")
