"""PostgreSQL as a process of the tests: a cluster in a folder, on a free port of the loopback."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psycopg

from tests.support.processes import free_ports
from tests.support.tools import give_up

if TYPE_CHECKING:
    from collections.abc import Mapping

_USER: Final = "postgres"
"""The server refuses to run as root."""
_TIMEOUT: Final = 60
_TRIES: Final = 20
_FAST: Final = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
}
"""For tests in which no server crashes."""


_VARIABLE: Final = "POSTGRES_PROGRAMS"
"""The environment variable with the folder of another version's programs."""


def find_programs() -> Path | None:
    """Return the folder with the programs, or None.

    It is the one of the variable ``POSTGRES_PROGRAMS``, else that of Debian's newest version.
    """
    if given := os.environ.get(_VARIABLE):
        return Path(given)
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4])
    )
    if found:
        return found[-1].parent
    alone = shutil.which("initdb")
    return None if alone is None else Path(alone).parent


def need_postgres() -> Path:
    """Skip the test if PostgreSQL is missing; with CI set, fail. Returns its programs' folder."""
    folder = find_programs()
    if folder is None:
        give_up("initdb not found; on Debian: apt-get install postgresql")
    if os.getuid() == 0:
        try:
            pwd.getpwnam(_USER)
        except KeyError:
            give_up(f"PostgreSQL does not run as root, and there is no user {_USER}")
    return folder


class PostgresServer:
    """One server with its data in a folder."""

    def __init__(self, folder: Path, *, fast: bool = False, data: Path | None = None) -> None:
        """``fast``: without syncs, for tests in which the server does not crash.

        ``data``: where the data are if not in ``folder``; its folder is writable for the server.
        """
        self.folder = folder
        self.data = data or folder / "data"
        self.log = folder / "postgres.log"
        self._programs = need_postgres()
        (self.port,) = free_ports(1)
        self._has_run = False
        self._fast = fast
        self.settings: dict[str, str] = {}

    def create(self, *options: object) -> None:
        """Make an empty cluster; ``options`` are more of initdb's."""
        self._own_folder()
        self._run(
            "initdb",
            "-D",
            self.data,
            "-U",
            _USER,
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-sync",
            "--locale=C",
            "--no-instructions",
            *options,
        )

    def copy_of(self, primary: PostgresServer) -> None:
        """Make a standby of a server that runs."""
        self._own_folder()
        self._run(
            "pg_basebackup",
            "-D",
            self.data,
            "-R",
            "-X",
            "stream",
            "-c",
            "fast",
            "--no-sync",
            "-d",
            f"host=127.0.0.1 port={primary.port} user={_USER} application_name=standby",
        )

    def _own_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if os.getuid() == 0:
            shutil.chown(self.folder, _USER, _USER)
            # The server enters the folders above as another user.
            for parent in self.folder.parents:
                with suppress(PermissionError):
                    parent.chmod(parent.stat().st_mode | 0o011)

    def start(self) -> None:
        """Start the server, and return once it accepts connections.

        A port that another process has got meanwhile is waited for, or replaced before the first
        start.
        """
        for _ in range(_TRIES):
            self._configure()
            before = self.log.stat().st_size if self.log.exists() else 0
            try:
                self._run("pg_ctl", "-D", self.data, "-l", self.log, "-w", "start")
            except subprocess.CalledProcessError:
                if b"Address already in use" not in self.log.read_bytes()[before:]:
                    raise
                time.sleep(0.5)
                if not self._has_run:
                    (self.port,) = free_ports(1)
            else:
                self._has_run = True
                return
        give_up(f"port {self.port} is in use")

    def _configure(self) -> None:
        options = {
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": "200",
            "shared_buffers": "32MB",
            **(_FAST if self._fast else {}),
            **self.settings,
        }
        text = "".join(f"{name} = '{value}'\n" for name, value in options.items())
        (self.data / "postgresql.auto.conf").write_text(
            text + self._standby_lines(), encoding="ascii"
        )

    def reconfigure(self, settings: Mapping[str, str]) -> None:
        """Change settings of the running server that need no restart."""
        self.settings |= settings
        for name, value in settings.items():
            self.execute(f"ALTER SYSTEM SET {name} = '{value}'")
        self.execute("SELECT pg_reload_conf()")

    def _standby_lines(self) -> str:
        path = self.data / "postgresql.auto.conf"
        if not path.exists():
            return ""
        lines = path.read_text().splitlines(keepends=True)
        return "".join(line for line in lines if line.startswith("primary_conninfo"))

    def stop(self, mode: str = "immediate") -> None:
        """Stop the server; ``immediate`` is as a crash of the server."""
        with suppress(subprocess.CalledProcessError):
            self._run("pg_ctl", "-D", self.data, "-m", mode, "-w", "stop")

    def kill(self) -> None:
        """Kill the server and all its backends with SIGKILL."""
        pid = self.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for one in (pid, *map(int, children)):
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        return int((self.data / "postmaster.pid").read_text().split()[0])

    def promote(self) -> None:
        """Make a primary of a standby."""
        self._run("pg_ctl", "-D", self.data, "-w", "promote")

    def url(self, database: str = "postgres", port: int | None = None) -> str:
        """Return the URL of a database; ``port``: that of a proxy in front of the server."""
        return f"postgresql://{_USER}@127.0.0.1:{port or self.port}/{database}"

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run a statement, and return its rows."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def copy_database(self, old: str, new: str) -> None:
        """Copy the committed content of a database that is in use."""
        self.execute(f"CREATE DATABASE {new}")
        dump = subprocess.run(
            [self._programs / "pg_dump", "-d", self.url(old)],
            capture_output=True,
            check=True,
            timeout=_TIMEOUT,
        )
        subprocess.run(
            [self._programs / "psql", "-q", "-v", "ON_ERROR_STOP=1", "-d", self.url(new)],
            input=dump.stdout,
            capture_output=True,
            check=True,
            timeout=_TIMEOUT,
        )

    def _run(self, program: str, *arguments: object) -> None:
        command = unprivileged([str(self._programs / program), *map(str, arguments)])
        with (self.folder / "programs.log").open("ab") as log:
            subprocess.run(
                command,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=True,
                timeout=_TIMEOUT,
            )


def unprivileged(command: list[str]) -> list[str]:
    """Return a command that runs ``command`` as the server's user, if this is root."""
    if os.getuid() != 0:
        return command
    return ["setpriv", f"--reuid={_USER}", f"--regid={_USER}", "--init-groups", *command]
