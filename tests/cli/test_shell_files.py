"""The man page, and the completion of the command line in the real shells."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from typing import TYPE_CHECKING, Final

import click
import pytest

from payloadd.cli.main import main
from payloadd.cli.shell_files import completion, man_page
from payloadd.config import settings as config
from tests.support.daemon import PYTHONPATH
from tests.support.tools import find_tool, need_tools

if TYPE_CHECKING:
    from pathlib import Path

_INPUTS: Final = {
    "bash": """
source ./script
COMP_WORDS=(payloadd journal dead "")
COMP_CWORD=3
_payloadd_completion payloadd
printf '%s\\n' "${COMPREPLY[@]}"
complete -p payloadd >/dev/null
""",
    "zsh": """
compdef() { print -r "complete $2" >&2; }
_describe() { local -a all; all=("${(@P)3}"); print -rl -- "${(@)all%%:*}"; }
source ./script
words=(payloadd journal dead "")
CURRENT=4
_payloadd_completion
""",
    "fish": """
source ./script
complete -C 'payloadd journal dead ' | string split -f1 \\t
""",
}
"""Each shell reads the script, and prints what may follow `payloadd journal dead `."""


def commands(command: click.Command, path: str = "payloadd") -> list[str]:
    """Return the words of every command that is no group."""
    if not isinstance(command, click.Group):
        return [path]
    return [
        one for name, sub in command.commands.items() for one in commands(sub, f"{path} {name}")
    ]


@pytest.mark.parametrize("shell", _INPUTS)
def test_a_shell_completes_a_command(shell: str, tmp_path: Path) -> None:
    """The Tab key would do nothing, or print errors into the command line."""
    need_tools(shell)
    program = tmp_path / "payloadd"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m payloadd "$@"\n')
    program.chmod(0o755)
    (tmp_path / "script").write_text(completion(shell, main))
    options = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
    done = subprocess.run(
        [find_tool(shell), *options],
        input=_INPUTS[shell],
        cwd=tmp_path,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        check=False,
    )
    assert sorted(done.stdout.split()) == ["drop", "list", "retry", "show"], done.stderr


def rendered(command: click.Command) -> str:
    """Return the man page of a command as a terminal shows it."""
    need_tools("groff")
    done = subprocess.run(
        [find_tool("groff"), "-man", "-ww", "-Tutf8", "-P-cbou", "-rLL=200n"],
        input=man_page(command),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout


def test_the_man_page_has_every_command_and_setting() -> None:
    """An operator without network would not find an option."""
    shown = rendered(main).splitlines()
    headings = [line.strip() for line in shown if line.startswith("   payloadd ")]
    assert [" ".join(w for w in one.split() if w.islower()) for one in headings] == sorted(
        commands(main)
    )
    names = {line.strip() for line in shown}
    settings = {config.names_of(one.name)[0] for one in fields(config.Settings)}
    terms = {name.split()[0] for name in names if name}
    assert settings <= terms
    assert "COMPRESSION" in settings
    assert any(line.strip().startswith("--give-up-after TEXT") for line in shown)


def test_the_man_page_shows_characters_as_they_are() -> None:
    """A command that is copied from the page would contain typographic quotes and hyphens."""
    text = r"""'single' "double" `back` ^~ --option C:\n …"""

    @click.command(help=f".dot at the beginning {text}\n\n\b\nkept\nlines")
    def dotted() -> None:
        pass

    shown = rendered(dotted)
    assert f".dot at the beginning {text}" in shown
    assert "       kept\n       lines\n" in shown
