"""Write an error that no code has handled, without the control characters of its text.

Python writes the text of such an error as it is, and a server or a file name may have chosen it.
"""

from __future__ import annotations

import sys
import threading
import traceback
from typing import TYPE_CHECKING

from payloadd.escaping import escape_controls_in_lines
from payloadd.observe import standard_streams

if TYPE_CHECKING:
    from types import TracebackType


def escape_unhandled_errors() -> None:
    """Escape the errors that end the process, or one of its threads.

    Hooks that another program has set, such as a debugger, stay.
    """
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = write_error
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _write_error_of_thread


def write_error(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> None:
    """Write an error with its traceback to standard error (see ``sys.excepthook``)."""
    lines = "".join(traceback.format_exception(kind, error, trace))
    standard_streams.write_line(escape_controls_in_lines(lines.rstrip("\n")), error=True)


def _write_error_of_thread(arguments: threading.ExceptHookArgs) -> None:
    if arguments.exc_type is not SystemExit:
        write_error(arguments.exc_type, arguments.exc_value, arguments.exc_traceback)
