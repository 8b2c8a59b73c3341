"""The process that encodes Parquet, on a machine whose pyarrow is broken."""

from __future__ import annotations

import sys

from payloadd.model.formats.parquet_process import main

if __name__ == "__main__":
    sys.modules["pyarrow"] = None  # type: ignore[assignment]
    main(int(sys.argv[1]))
