"""The tests; folders mirror ``daemon/payloadd/``, ``python -m tests`` runs them all."""

import os
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_SOURCES = str(_ROOT / "daemon")

# Take the code of this checkout, here and in child processes: another one may be installed.
if _SOURCES not in sys.path:
    sys.path.insert(0, _SOURCES)
os.environ["PYTHONPATH"] = os.pathsep.join([_SOURCES, str(_ROOT)])
