"""Programs that send, and proxies, with the configurations that the README shows."""

from __future__ import annotations

import http.server
import json
import socket
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import pytest

from tests.support.senders import (
    README_ADDRESS,
    changed,
    configuration,
    post,
    proxy_port,
    running_program,
    running_proxy,
    shared_daemon,
    wait_for,
)
from tests.support.tools import find_tool, give_up, need_tools

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.senders import SharedDaemon

pytestmark = pytest.mark.no_cover

AXIOS: Final = Path("/usr/share/nodejs/axios/dist/node/axios.cjs")
TRUSTED: Final = {"TRUSTED_PROXIES": "127.0.0.1, unix"}
NGINX: Final = """daemon off; master_process off; pid {folder}/pid; error_log stderr warn;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  {server}
}}
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedDaemon]:
    """Return a daemon behind proxies that state the client in X-Forwarded-For."""
    folder = tmp_path_factory.mktemp("daemon")
    with shared_daemon(folder, CLIENT_ADDRESS="x-forwarded-for", **TRUSTED) as running:
        yield running


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedDaemon]:
    """Return a daemon behind proxies that state the client in a PROXY header."""
    folder = tmp_path_factory.mktemp("proxied")
    with shared_daemon(folder, CLIENT_ADDRESS="proxy", **TRUSTED) as running:
        yield running


def run(folder: Path, *command: str, text: str = "") -> str:
    """Run a program to its end; return its output."""
    done = subprocess.run(
        command, cwd=folder, input=text, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def upstreams(running: SharedDaemon) -> dict[str, str]:
    """Return the addresses of the README, each with the daemon's."""
    return {README_ADDRESS: running.address}


def check_proxy(running: SharedDaemon, port: int, source: str, client: str) -> None:
    """Post through a proxy from the address ``source``; the log must show ``client``."""
    text = f"from {source} {port}"
    assert post(port, json.dumps([text]), source) == 202
    assert post(port, "{", source) == 400
    running.wait_until_stored(text)
    assert running.refused_clients()[-1] == client


# --- senders ------------------------------------------------------------------------------------


def test_curl(daemon: SharedDaemon, tmp_path: Path) -> None:
    """The first command that a user tries."""
    need_tools("curl")
    (tmp_path / "events.ndjson").write_text('{"curl": "one"}\n{"curl": "two"}\n')
    output = run(tmp_path, "sh", "-c", changed(configuration("curl"), **upstreams(daemon)))
    assert [json.loads(part + "}")["accepted"] for part in output.split("}")[:-1]] == [1, 2]
    daemon.wait_until_stored('{"curl": "two"}')


def test_fetch_of_node_repeats_after_a_failure(daemon: SharedDaemon, tmp_path: Path) -> None:
    """A page or a service would lose its payloads during a restart."""
    need_tools("node")
    (tmp_path / "post.mjs").write_text(configuration("JavaScript"))
    with Unavailable(1) as unavailable:
        script = f"""import {{post}} from "./post.mjs"
        await post("http://127.0.0.1:{unavailable.server_port}", ["again"])
        const answer = await post("http://{daemon.address}/v1/payloads", [{{fetch: 1}}, 2])
        console.log(answer.status, (await answer.json()).accepted)"""
        (tmp_path / "main.mjs").write_text(script)
        assert run(tmp_path, find_tool("node"), "main.mjs") == "202 2\n"
    first, second = unavailable.requests
    assert first == second
    daemon.wait_until_stored('{"fetch":1}')


def test_node_without_a_length(daemon: SharedDaemon, tmp_path: Path) -> None:
    """The module http sends a body that is written in pieces as chunks."""
    need_tools("node")
    script = f"""const http = require("node:http")
    const options = {{method: "POST", headers: {{"Content-Type": "application/json"}}}}
    const url = "http://{daemon.address}/v1/payloads"
    const request = http.request(url, options, (answer) => {{
        console.log(answer.statusCode); answer.resume()
    }})
    request.write('[{{"chunks":'); request.end('1}}]')"""
    assert run(tmp_path, find_tool("node"), "-e", script) == "202\n"
    daemon.wait_until_stored('{"chunks":1}')


def test_axios(daemon: SharedDaemon, tmp_path: Path) -> None:
    """The most used client of Node.js."""
    need_tools("node")
    if not AXIOS.exists():
        give_up(f"{AXIOS} not found; on Debian: apt-get install node-axios")
    script = f"""const axios = require("{AXIOS}")
    axios.post("http://{daemon.address}/v1/payloads", [{{axios: 1}}, 2])
      .then((answer) => console.log(answer.status, answer.data.accepted))"""
    # Debian's Node.js finds the packages that axios needs by itself, others do not.
    command = ("env", f"NODE_PATH={AXIOS.parents[3]}", find_tool("node"), "-e", script)
    assert run(tmp_path, *command) == "202 2\n"
    daemon.wait_until_stored('{"axios":1}')


def test_go(daemon: SharedDaemon, tmp_path: Path) -> None:
    """The client of Go's standard library."""
    need_tools("go")
    (tmp_path / "post.go").write_text(changed(configuration("Go"), **upstreams(daemon)))
    cache = ("env", f"HOME={tmp_path}", "GOFLAGS=-mod=mod", "GOTOOLCHAIN=local")
    assert run(tmp_path, *cache, find_tool("go"), "run", "post.go") == "202\n"


@pytest.mark.large
@pytest.mark.parametrize("version", ["HTTP_1_1", "HTTP_2"])
def test_java(version: str, daemon: SharedDaemon, tmp_path: Path) -> None:
    """The client of Java's standard library, also when it asks for HTTP/2."""
    need_tools("java")
    text = changed(configuration("Java"), HTTP_1_1=version, **upstreams(daemon))
    (tmp_path / "Post.java").write_text(text)
    assert run(tmp_path, find_tool("java"), "Post.java") == "202\n"


class Unavailable(http.server.ThreadingHTTPServer):
    """A server that answers 503 ``times`` times, and then 202."""

    def __init__(self, times: int) -> None:
        super().__init__(("127.0.0.1", 0), _UnavailableHandler)
        self.times = times
        self.requests: list[tuple[str | None, bytes]] = []
        """The Idempotency-Key and the body of each request."""
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class _UnavailableHandler(http.server.BaseHTTPRequestHandler):
    server: Unavailable

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.headers["Idempotency-Key"], body))
        self.send_response(503 if len(self.server.requests) <= self.server.times else 202)
        self.send_header("Retry-After", "0")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        """Write no log."""


def syslog(folder: Path, destination: str) -> tuple[tuple[str, ...], Path]:
    """Write a configuration of syslog-ng; return its command and the socket that it reads."""
    source = folder / "in"
    (folder / "syslog-ng.conf").write_text(
        f"""@version: 3.38
        options {{ time-reopen(1); stats-freq(0); }};
        source s_test {{ unix-stream("{source}" flags(syslog-protocol)); }};
        {destination}
        log {{ source(s_test); destination(d_payloadd); }};"""
    )
    files = ("-R", f"{folder}/persist", "-p", f"{folder}/pid", "-c", f"{folder}/control")
    command = (find_tool("syslog-ng"), "-F", "--no-caps", "-f", f"{folder}/syslog-ng.conf", *files)
    return command, source


def send_syslog(source: Path, *messages: str) -> None:
    """Send messages to syslog-ng."""
    with socket.socket(socket.AF_UNIX) as one:
        wait_for(lambda: one.connect_ex(str(source)) == 0)
        for text in messages:
            one.sendall(f"<13>1 2026-01-01T00:00:00Z host app - - - {text}\n".encode())


def test_syslog_ng(daemon: SharedDaemon, tmp_path: Path) -> None:
    """Its messages would be refused, or joined into one payload."""
    need_tools("syslog-ng")
    destination = changed(configuration("syslog-ng"), **upstreams(daemon))
    command, source = syslog(tmp_path, destination)
    with running_program(tmp_path, *command):
        send_syslog(source, "syslog one", "syslog two")
        daemon.wait_until_stored('"MESSAGE":"syslog one"')
        daemon.wait_until_stored('"MESSAGE":"syslog two"')


@pytest.mark.large
def test_syslog_ng_repeats_until_it_is_accepted(tmp_path: Path) -> None:
    """It would drop messages after three refusals."""
    need_tools("syslog-ng")
    with Unavailable(5) as unavailable:
        address = f"127.0.0.1:{unavailable.server_port}"
        destination = changed(configuration("syslog-ng"), **{README_ADDRESS: address})
        command, source = syslog(tmp_path, destination)
        with running_program(tmp_path, *command):
            send_syslog(source, "again")
            wait_for(lambda: len(unavailable.requests) > unavailable.times, 60)
    assert len({body for _, body in unavailable.requests}) == 1


# --- proxies ------------------------------------------------------------------------------------

CLIENT: Final = "127.0.0.9"


def http_1_0(text: str) -> str:
    """Return nginx's configuration without the lines that the README calls optional."""
    optional = ("proxy_http_version", "proxy_set_header", "keepalive")
    return "".join(
        line
        for line in text.splitlines(keepends=True)
        if not any(word in line for word in optional)
    )


@pytest.mark.parametrize(
    ("variant", "client"), [("as shown", CLIENT), ("HTTP/1.0", "127.0.0.1"), ("Unix", CLIENT)]
)
def test_nginx(variant: str, client: str, daemon: SharedDaemon, tmp_path: Path) -> None:
    """Behind nginx every request would fail, or have the same client."""
    need_tools("nginx")
    port = proxy_port()
    upstream = f"unix:{daemon.socket}" if variant == "Unix" else daemon.address
    text = configuration("nginx in front")
    text = http_1_0(text) if variant == "HTTP/1.0" else text
    replaced = {"listen 80": f"listen 127.0.0.1:{port}", README_ADDRESS: upstream}
    server = changed(text, **replaced)
    (tmp_path / "nginx.conf").write_text(NGINX.format(folder=tmp_path, server=server))
    command = (find_tool("nginx"), "-p", str(tmp_path), "-c", "nginx.conf")
    with running_proxy(tmp_path, port, *command):
        check_proxy(daemon, port, CLIENT, client)


HAPROXY_LINE: Final = f"{README_ADDRESS} send-proxy-v2"


@pytest.mark.parametrize(
    ("variant", "server"),
    [
        ("version 2", "{address} send-proxy-v2"),
        ("version 1", "{address} send-proxy"),
        ("fields", "{address} send-proxy-v2 proxy-v2-options unique-id,crc32c"),
        ("HTTP/2", "{address} send-proxy-v2 proto h2"),
        ("Unix", "unix@{socket} send-proxy-v2"),
        ("checks", "{address} send-proxy-v2 check inter 100ms"),
    ],
)
def test_haproxy(variant: str, server: str, proxied: SharedDaemon, tmp_path: Path) -> None:
    """Behind HAProxy every request would fail, or have the same client."""
    need_tools("haproxy")
    port = proxy_port()
    upstream = server.format(address=proxied.address, socket=proxied.socket)
    replaced = {":80\n": f"127.0.0.1:{port}\n", HAPROXY_LINE: upstream}
    text = changed(configuration("HAProxy in front"), **replaced)
    if variant == "fields":
        text = text.replace("frontend payloads\n", "frontend payloads\n    unique-id-format %rt\n")
    check_haproxy(proxied, port, text, tmp_path)
    assert [line for line in proxied.log if line["event"] == "proxy_header_refused"] == []


def check_haproxy(running: SharedDaemon, port: int, text: str, folder: Path) -> None:
    """Run HAProxy with a configuration, and post through it."""
    (folder / "haproxy.cfg").write_text(text)
    with running_proxy(folder, port, find_tool("haproxy"), "-db", "-f", f"{folder}/haproxy.cfg"):
        check_proxy(running, port, CLIENT, CLIENT)


@pytest.mark.parametrize("upstream", ["{address}", "{address} proto h2", "unix@{socket}"])
def test_haproxy_with_a_header(upstream: str, daemon: SharedDaemon, tmp_path: Path) -> None:
    """The same with X-Forwarded-For."""
    need_tools("haproxy")
    port = proxy_port()
    server = upstream.format(address=daemon.address, socket=daemon.socket)
    replaced = {":80\n": f"127.0.0.1:{port}\n", HAPROXY_LINE: server}
    text = changed(configuration("HAProxy in front"), **replaced)
    check_haproxy(
        daemon, port, text.replace("mode http\n", "mode http\n    option forwardfor\n"), tmp_path
    )


@pytest.mark.parametrize("upstream", ["{address}", "h2c://{address}", "unix/{socket}"])
def test_caddy(upstream: str, daemon: SharedDaemon, tmp_path: Path) -> None:
    """Behind Caddy every request would fail, or have the same client."""
    need_tools("caddy")
    port = proxy_port()
    server = upstream.format(address=daemon.address, socket=daemon.socket)
    replaced = {":80 {": f"http://127.0.0.1:{port} {{\n    bind 127.0.0.1", README_ADDRESS: server}
    text = changed(configuration("Caddy in front"), **replaced)
    (tmp_path / "Caddyfile").write_text("{\n    admin off\n}\n" + text)
    command = (find_tool("caddy"), "run", "--config", f"{tmp_path}/Caddyfile")
    with running_proxy(tmp_path, port, *command):
        check_proxy(daemon, port, CLIENT, CLIENT)
