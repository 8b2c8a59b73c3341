"""Errors that no code has handled."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

import pytest

from tests.support.daemon import ROOT

EVIL: Final = r"x\x1b[2J\x9b\u202e"
CODE: Final = """
import sys, threading
from payloadd.observe.unhandled_errors import escape_unhandled_errors
escape_unhandled_errors()
def fail():
    raise {error}
{call}
"""
IN_THREAD: Final = "thread = threading.Thread(target=fail); thread.start(); thread.join()"


def run(error: str, call: str) -> subprocess.CompletedProcess[str]:
    """Run a program that ends with an error, or one of whose threads does."""
    code = CODE.format(error=error, call=call)
    path = {"PYTHONPATH": str(ROOT / "daemon")}
    return subprocess.run(
        [sys.executable, "-c", code], env=path, check=False, capture_output=True, text=True
    )


@pytest.mark.parametrize("call", ["fail()", IN_THREAD])
def test_the_text_of_an_unhandled_error_is_escaped(call: str) -> None:
    """A server could write to the terminal of an operator by an error that nothing expects."""
    done = run(f"ValueError('{EVIL}')", call)
    assert "ValueError: x\\u001b[2J\\u009b\\u202e" in done.stderr
    assert not set("\x1b\x9b\u202e") & set(done.stderr)
    assert "in fail" in done.stderr
    assert done.returncode == (1 if call == "fail()" else 0)


def test_the_exit_of_a_thread_is_no_error() -> None:
    """An operator would look for a fault that is not there."""
    assert run("SystemExit(3)", IN_THREAD).stderr == ""
