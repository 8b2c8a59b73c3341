"""The description of both addresses, ``/openapi.json``."""

from __future__ import annotations

import ast
import json
from typing import TYPE_CHECKING, Any, Final

import pytest
from openapi_spec_validator import validate

from payloadd.config import settings as config
from payloadd.ingress.admin import make_admin_app
from payloadd.ingress.api import add_route, bare_app, healthz
from payloadd.ingress.auth import new_token
from payloadd.ingress.body import ACCEPTED_TYPES, CODINGS, JSON_TYPE, check_headers
from payloadd.ingress.cors import Cors
from payloadd.ingress.openapi import PARAMETERS, document_of
from payloadd.ingress.operations import EVERY_REQUEST, NO_OPERATION, OPERATIONS
from payloadd.ingress.problem import KINDS
from payloadd.ingress.submission import PostHeaders
from payloadd.observe.health import Health
from payloadd.observe.metrics import Metrics
from tests.ingress.rig import FakeIntake, running
from tests.support.daemon import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.ingress.tls_files import Files

PATHS: Final = {"/v1/payloads", "/v1/payload", "/healthz", "/openapi.json"}
METHODS: Final = {"get", "post", "put", "patch", "delete", "trace"}
BARE: Final = (
    "content_type",
    "document",
    "origin",
    "x_forwarded_for",
    "forwarded",
    "stream",
    "kept",
)
"""Fields of PostHeaders that are no parameters: type, path, and what browsers and proxies set."""


async def description(**settings: str) -> dict[str, Any]:
    """Return the description of a public address with these settings."""
    async with (
        running(None, max_connections=9, options=None, **settings) as rig,
        rig.client() as client,
    ):
        found: dict[str, Any] = (await client.get("/openapi.json")).json()
        return found


@pytest.fixture
def tokens(tmp_path: Path) -> tuple[str, Path]:
    """Return a token, and a file of AUTH_TOKENS that has it."""
    token, line = new_token("shop")
    path = tmp_path / "tokens"
    path.write_text(line + "\n")
    return token, path


@pytest.mark.usefixtures("each_way")
async def test_the_description_is_valid_and_complete() -> None:
    """Otherwise tools would refuse it, or clients made from it would lack an operation."""
    async with running() as rig, rig.client() as client:
        answer = await client.get("/openapi.json")
        assert (answer.status_code, answer.headers["content-type"]) == (200, JSON_TYPE)
        document = answer.json()
        validate(document)
        assert {path.replace("/{stream}", "") for path in document["paths"]} == PATHS
        head = await client.head("/openapi.json")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == answer.headers["content-length"]
        for template, item in document["paths"].items():
            path = template.replace("{stream}", "default")
            allowed = (await client.options(path)).headers["allow"].lower().split(", ")
            assert set(allowed) - {"head", "options"} == item.keys() & METHODS
            for method in METHODS - set(allowed):
                answer = await client.request(method, path)
                assert (answer.status_code, answer.json()["code"]) == (405, "METHOD_NOT_ALLOWED")


async def test_the_admin_address_describes_itself() -> None:
    """Otherwise an operator's tools would not know what /readyz answers."""
    health = Health()
    settings = config.load({})
    app = make_admin_app(FakeIntake(), health, Metrics(health.snapshot), settings)
    async with running(app) as rig, rig.client() as client:
        document = (await client.get("/openapi.json")).json()
    validate(document)
    assert document["paths"].keys() == {"/healthz", "/readyz", "/metrics", "/openapi.json"}
    unready = document["paths"]["/readyz"]["get"]["responses"]["503"]
    assert unready["headers"]["Retry-After"]["required"]
    assert "STARTING" in unready["description"]


async def test_the_limits_are_those_of_this_process() -> None:
    """Otherwise a client would send requests that this daemon refuses."""
    document = await description(MAX_PAYLOADS="7", MAX_LENGTH="1234")
    array, members = document["components"]["schemas"]["Collection"]["oneOf"]
    for name in ("payloads", "data", "batch"):
        assert members["properties"][name] == array
    assert array["maxItems"] == 7
    assert document["components"]["schemas"]["Receipt"]["properties"]["accepted"]["maximum"] == 7
    assert "1234 bytes" in document["paths"]["/v1/payload"]["put"]["requestBody"]["description"]


def _codes(document: dict[str, Any], path: str, method: str = "post") -> set[str]:
    """Return the codes that a description lists for an operation."""
    responses = document["paths"][path][method]["responses"]
    return {
        code
        for response in responses.values()
        for media in response["content"].values()
        for part in media["schema"].get("allOf", ())
        for code in part.get("properties", {}).get("code", {}).get("enum", ())
    }


async def test_codes_that_the_settings_rule_out_are_not_listed(tokens: tuple[str, Path]) -> None:
    """Otherwise a client would have to handle answers that it can never get."""
    codes = _codes(await description(), "/v1/payloads")
    assert codes >= {"JOURNAL_FULL", "DISK_ERROR", "NOT_A_COLLECTION", "KEY_REUSED", "BUSY"}
    asked = {"UNAUTHENTICATED", "FORBIDDEN", "RATE_LIMITED", "QUEUE_FULL"}
    assert not codes & (asked | {"UNKNOWN_STREAM"})
    document = await description(DURABILITY="memory", AUTH_TOKENS=str(tokens[1]), RATE_LIMIT="9/s")
    validate(document)
    codes = _codes(document, "/v1/payload")
    assert codes >= asked
    assert not codes & {"JOURNAL_FULL", "DISK_ERROR", "NOT_A_COLLECTION"}
    assert document["paths"]["/v1/payload"]["post"]["security"] == [{"bearer": []}, {"basic": []}]
    assert "security" not in document["paths"]["/healthz"]["get"]


async def test_answers_that_wait_for_the_store_are_described() -> None:
    """Otherwise a client would wait for a 202 that never comes."""
    document = await description(DURABILITY="store")
    validate(document)
    operation = document["paths"]["/v1/payloads"]["post"]
    assert "202" not in operation["responses"]
    assert "headers" not in operation["responses"]["201"]
    assert "Prefer" not in {parameter["name"] for parameter in operation["parameters"]}
    codes = _codes(document, "/v1/payloads")
    assert codes >= {"STORE_UNAVAILABLE", "STORE_REFUSED", "QUEUE_FULL", "KEY_REUSED"}
    assert not codes & {"JOURNAL_FULL", "DISK_ERROR"}
    codes = _codes(await description(), "/v1/payloads")
    assert not codes & {"STORE_UNAVAILABLE", "STORE_REFUSED"}


def test_a_certificate_is_needed_beside_the_token(tokens: tuple[str, Path], files: Files) -> None:
    """Otherwise a client would learn of the certificate by a connection that is closed."""
    authority = files.environ["TLS_CERT"]
    environ = {**files.environ, "TLS_CLIENT_CA": authority, "AUTH_TOKENS": str(tokens[1])}
    app = bare_app(Health())
    add_route(app, ("POST",), "/v1/payload", healthz)
    document = document_of(app, config.load(environ))
    validate(document)
    security = document["paths"]["/v1/payload"]["post"]["security"]
    assert security == [{"certificate": [], "bearer": []}, {"certificate": [], "basic": []}]


async def test_no_secret_is_described(tokens: tuple[str, Path]) -> None:
    """The description can be read without a token."""
    token, path = tokens
    digest = path.read_text().split(":")[1].strip()
    secrets = {
        "AUTH_TOKENS": str(path),
        "AWS_ACCESS_KEY_ID": "AKIDQXZ",
        "AWS_SECRET_ACCESS_KEY": "QXZ789QXZ",
        "STORE_URL": "s3://bucketqxz/prefixqxz",
        "CORS_ORIGINS": "https://shop-qxz.example",
    }
    text = json.dumps(await description(AWS_REGION="eu-west-1", **secrets))
    for secret in (token, digest, "shop", *secrets.values()):
        assert secret not in text


async def test_what_a_page_sends_is_described_and_allowed_by_the_preflight() -> None:
    """Otherwise a page could not send a header that the description offers."""
    document = await description(CORS_ORIGINS="https://a.example")
    validate(document)
    operation = document["paths"]["/v1/payloads"]["post"]
    assert "text/plain" in operation["requestBody"]["content"]
    assert "Access-Control-Allow-Origin" in operation["responses"]["202"]["headers"]
    allowed = Cors(["*"]).preflight(None)["Access-Control-Allow-Headers"].split(", ")
    assert {parameter["name"].lower() for parameter in operation["parameters"]} <= set(allowed)


async def test_each_type_and_encoding_that_is_described_is_accepted() -> None:
    """Otherwise a client made from the description would get a 415."""
    paths = (await description())["paths"]
    collection = paths["/v1/payloads"]["post"]
    types = collection["requestBody"]["content"].keys()
    assert types - {"application/*+json"} == set(ACCEPTED_TYPES.split(", "))
    codings = collection["parameters"][0]["schema"]["enum"]
    assert codings == [*CODINGS]
    for media_type in types:
        for coding in codings:
            check_headers(media_type.replace("*", "vnd.x"), coding)
    for media_type in paths["/v1/payload"]["put"]["requestBody"]["content"]:
        check_headers(media_type.replace("*", "vnd.x"), None, document=True)


@pytest.mark.parametrize(
    ("streams", "schema"),
    [
        (("default", "clicks"), {"type": "string", "enum": ["clicks", "default"]}),
        ((), {"type": "string", "pattern": "^[a-z0-9][a-z0-9_-]{0,62}$"}),
    ],
)
def test_a_stream_is_a_parameter_of_the_path(
    streams: tuple[str, ...], schema: dict[str, Any]
) -> None:
    """Otherwise a client could not know which streams there are, or that there are any."""
    app = bare_app(Health())
    add_route(app, ("POST", "PUT"), "/v1/payloads/<stream>", healthz)
    document = document_of(app, config.load({}), streams)
    validate(document)
    item = document["paths"]["/v1/payloads/{stream}"]
    assert item["parameters"][0]["schema"] == schema
    assert item["post"]["operationId"] == "postCollectionOfStream"
    assert "UNKNOWN_STREAM" in _codes(document, "/v1/payloads/{stream}", "put")


def test_every_header_that_a_post_is_judged_by_is_described() -> None:
    """Otherwise a header that the daemon heeds would be known to nothing but its source."""
    assert set(PostHeaders._fields) - set(BARE) == PARAMETERS.keys()


def test_every_code_in_the_source_is_described() -> None:
    """Otherwise a client would get a code, or a status, that the description does not have."""
    named = set()
    for path in (ROOT / "daemon" / "payloadd").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args:
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                first = node.args[0]
                if name in {"Problem", "RefusedError", "__init__"} and isinstance(
                    first, ast.Constant
                ):
                    named.add(first.value)
    codes = {code for code in named if isinstance(code, str) and code.isupper()}
    described = {*EVERY_REQUEST, *NO_OPERATION}.union(*(one.codes for one in OPERATIONS.values()))
    assert described == KINDS.keys()
    assert codes <= described
    assert len(codes) >= len(KINDS) - 1, "the search finds most of them"
