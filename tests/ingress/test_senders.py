"""Bodies as programs and libraries send them, with the settings that the README names.

Each body has the form that the sender's documentation shows, with the sender's own headers.
"""

from __future__ import annotations

import gzip
import json
import zlib
from typing import NamedTuple

import pytest

from tests.ingress.rig import running

pytestmark = pytest.mark.usefixtures("each_way")

COLLECTION = "/v1/payloads"
DOCUMENT = "/v1/payload"


class Sender(NamedTuple):
    """A request of one sender, and the payloads that have to be stored."""

    path: str
    headers: dict[str, str]
    body: bytes
    payloads: int


def lines(*records: object) -> bytes:
    """Return NDJSON."""
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


EVENT = {
    "specversion": "1.0", "type": "com.example.someevent", "source": "/mycontext",
    "id": "C234-1234-1234", "time": "2018-04-05T17:31:00Z", "datacontenttype": "application/json",
    "data": {"appinfoA": "abc", "appinfoB": 123},
}  # fmt: skip
OTLP = {
    "resourceLogs": [
        {
            "resource": {
                "attributes": [{"key": "service.name", "value": {"stringValue": "my.service"}}]
            },
            "scopeLogs": [
                {
                    "scope": {"name": "my.library", "version": "1.0.0"},
                    "logRecords": [
                        {
                            "timeUnixNano": "1544712660300000000", "severityNumber": 10,
                            "severityText": "Information",
                            "body": {"stringValue": "Example log record"},
                        }
                    ],
                }
            ],
        }
    ]
}  # fmt: skip
SEGMENT = {
    "batch": [
        {"type": "identify", "userId": "019mr8mf4r", "traits": {"plan": "Free"}},
        {"type": "track", "userId": "019mr8mf4r", "event": "Song Played", "properties": {}},
    ],
    "context": {"device": {"type": "phone"}},
    "sentAt": "2015-12-02T00:30:08.276Z",
}
WEBHOOK = {"action": "opened", "number": 2, "pull_request": {"title": "A title"}, "data": [1]}
SYSLOG_LINE = b'{"PROGRAM":"sshd","PRIORITY":"info","MESSAGE":"Accepted publickey","HOST":"web1"}'

SENDERS = {
    "fluent-bit json": Sender(
        COLLECTION,
        {"Content-Type": "application/json", "User-Agent": "Fluent-Bit"},
        b'[{"date":1449505010.005000,"cpu_p":0.5},{"date":1449505011.005000,"cpu_p":0.25}]',
        2,
    ),
    "fluent-bit json_lines": Sender(
        COLLECTION,
        {"Content-Type": "application/x-ndjson", "User-Agent": "Fluent-Bit"},
        b'{"date":1449505010.005000,"cpu_p":0.5}\n{"date":1449505011.005000,"cpu_p":0.25}',
        2,
    ),
    "fluent-bit json, compressed": Sender(
        COLLECTION,
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
        gzip.compress(b'[{"date":1449505010.005000,"log":"a"}]', mtime=0),
        1,
    ),
    "vector json": Sender(
        COLLECTION,
        {"Content-Type": "application/json", "User-Agent": "Vector/0.40.0"},
        b'[{"message":"a","timestamp":"2026-01-01T00:00:00Z"},{"message":"b"}]',
        2,
    ),
    "vector json, newline_delimited": Sender(
        COLLECTION,
        {"Content-Type": "application/x-ndjson", "User-Agent": "Vector/0.40.0"},
        lines({"message": "a"}, {"message": "b"}),
        2,
    ),
    "vector json, zlib": Sender(
        COLLECTION,
        {"Content-Type": "application/json", "Content-Encoding": "deflate"},
        zlib.compress(b'[{"message":"a"}]'),
        1,
    ),
    "syslog-ng http(), array": Sender(
        COLLECTION,
        {"Content-Type": "application/json", "User-Agent": "syslog-ng 3.38.1/libcurl 7.88.1"},
        b"[" + SYSLOG_LINE + b",\n" + SYSLOG_LINE + b"]",
        2,
    ),
    "syslog-ng http(), lines": Sender(
        COLLECTION,
        {"Content-Type": "application/x-ndjson"},
        SYSLOG_LINE + b"\n" + SYSLOG_LINE,
        2,
    ),
    "rsyslog omhttp, batch of jsonarray": Sender(
        COLLECTION,
        {"Content-Type": "application/json; charset=utf-8"},
        b"[" + SYSLOG_LINE + b"," + SYSLOG_LINE + b"]",
        2,
    ),
    "rsyslog omhttp, one message": Sender(
        DOCUMENT, {"Content-Type": "application/json; charset=utf-8"}, SYSLOG_LINE + b"\n", 1
    ),
    "cloudevents structured": Sender(
        DOCUMENT,
        {"Content-Type": "application/cloudevents+json; charset=UTF-8"},
        json.dumps(EVENT, indent=2).encode(),
        1,
    ),
    "cloudevents batched": Sender(
        COLLECTION,
        {"Content-Type": "application/cloudevents-batch+json"},
        json.dumps([EVENT, EVENT]).encode(),
        2,
    ),
    "cloudevents binary": Sender(
        DOCUMENT,
        {"Content-Type": "application/json", "ce-id": "1", "ce-type": "x", "ce-source": "/y"},
        json.dumps(EVENT["data"]).encode(),
        1,
    ),
    "otlp/http json": Sender(
        DOCUMENT,
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
        gzip.compress(json.dumps(OTLP).encode(), mtime=0),
        1,
    ),
    "segment batch": Sender(
        COLLECTION,
        {"Content-Type": "application/json", "User-Agent": "analytics-python/2.3.2"},
        json.dumps(SEGMENT).encode(),
        2,
    ),
    "webhook": Sender(
        DOCUMENT,
        {"Content-Type": "application/json", "X-GitHub-Event": "pull_request"},
        json.dumps(WEBHOOK).encode(),
        1,
    ),
    "curl --json": Sender(
        DOCUMENT,
        {"Content-Type": "application/json", "Accept": "application/json"},
        b'{"a": 1}',
        1,
    ),
    "powershell, with a byte order mark": Sender(
        COLLECTION,
        {"Content-Type": "application/json; charset=utf-8"},
        b'\xef\xbb\xbf[\r\n    {\r\n        "a":  1\r\n    }\r\n]',
        1,
    ),
}


@pytest.mark.parametrize("name", SENDERS)
async def test_a_sender_is_accepted(name: str) -> None:
    """The sender would drop its events, or try for ever."""
    path, headers, body, payloads = SENDERS[name]
    async with running() as rig, rig.client() as client:
        answer = await client.post(path, headers=headers, content=body)
        assert (answer.status_code, answer.json().get("accepted")) == (202, payloads), answer.text
        (taken,) = rig.intake.taken
        assert all(isinstance(json.loads(payload), dict) for payload in taken)
        assert not any(b"\n" in payload for payload in taken)


async def test_a_webhook_is_told_about_the_path_for_documents() -> None:
    """The most common mistake: one document at the path of collections."""
    _, headers, _, _ = SENDERS["webhook"]
    async with running() as rig, rig.client() as client:
        answer = await client.post(COLLECTION, headers=headers, content=b'{"action":"opened"}')
        assert answer.status_code == 422
        assert "/v1/payload" in answer.json()["detail"]
