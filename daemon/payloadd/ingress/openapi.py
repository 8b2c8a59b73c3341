"""Describe the operations of an app in OpenAPI 3.1, for ``/openapi.json``.

Source: the OpenAPI Specification, version 3.1.1 (spec.openapis.org/oas/v3.1.1.html).

Paths and methods are those of the app's routes. Codes, types, encodings and limits are those that
the code goes by. OpenAPI has no way to say that HEAD is answered wherever GET is, and OPTIONS
everywhere: the description of the document says so, and clients that are generated from it do not
need these methods.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

import msgspec

from payloadd import __version__
from payloadd.escaping import escape_controls_in_json
from payloadd.ingress.body import CODINGS, IDENTITY, JSON_SUFFIX, JSON_TYPE, NDJSON_TYPES
from payloadd.ingress.collection import MEMBERS, Collection
from payloadd.ingress.cors import TEXT_TYPE
from payloadd.ingress.operations import (
    METRICS_TYPE,
    OPERATIONS,
    Operation,
    is_file_of_page,
    possible_codes,
)
from payloadd.ingress.problem import CONTENT_TYPE, KINDS, problem_type
from payloadd.ingress.submission import KEY_CHARACTERS, LONGEST_KEY
from payloadd.pipeline.intake import MOST_KEYS

if TYPE_CHECKING:
    from collections.abc import Collection as Strings
    from collections.abc import Iterator

    from quart_trio import QuartTrio
    from werkzeug.routing import Rule

    from payloadd.config.settings import Settings

JsonObject = dict[str, Any]

_STREAM_PART: Final = "/<stream>"
_STREAM_NAME: Final = "^[a-z0-9][a-z0-9_-]{0,62}$"
_UNDESCRIBED_METHODS: Final = frozenset({"HEAD", "OPTIONS"})
_TEXT: Final[JsonObject] = {"type": "string"}
_SECONDS: Final[JsonObject] = {"type": "integer", "minimum": 0}
_ALLOW_ORIGIN: Final[JsonObject] = {
    "description": "The page of a browser may read the answer (CORS_ORIGINS).",
    "schema": _TEXT,
}
_OK: Final = "200"
_CREATED: Final = "201"
_ACCEPTED: Final = "202"

PARAMETERS: Final[dict[str, JsonObject]] = {
    "content_encoding": {
        "name": "Content-Encoding",
        "in": "header",
        "description": "The compression of the body.",
        "schema": {"type": "string", "enum": [*CODINGS], "default": IDENTITY},
    },
    "idempotency_key": {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "Within 24 hours, a request with the same key and the same payloads gets the"
        " first answer again, and nothing is stored twice.",
        "schema": {
            "type": "string",
            "pattern": f"^{KEY_CHARACTERS}+$",
            "minLength": 1,
            "maxLength": LONGEST_KEY,
        },
    },
    "wait": {
        "name": "Prefer",
        "in": "header",
        "description": "`wait=N` (RFC 7240): the answer waits up to N seconds for the upload.",
        "schema": {"type": "string"},
    },
}
"""Parameters by the field of PostHeaders; the media types of the body stand for Content-Type."""


def document_of(app: QuartTrio, settings: Settings, streams: Strings[str] = ()) -> JsonObject:
    """Return the description of the routes of ``app``.

    ``streams`` are the names of the streams; empty if the client must not learn them.
    """
    document: JsonObject = {
        "openapi": "3.1.1",
        "info": {
            "title": "payloadd",
            "version": __version__,
            "description": "Takes JSON payloads and stores them. A trailing slash makes no"
            " difference to a path. HEAD is answered like GET, without the body. Requests to"
            " other paths get a 404 NOT_FOUND, other methods a 405 METHOD_NOT_ALLOWED.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "paths": _paths(app, settings, streams),
        "components": {"schemas": _schemas(settings)},
    }
    schemes = _security_schemes(settings)
    if schemes:
        document["components"]["securitySchemes"] = schemes
    return document


def render(app: QuartTrio, settings: Settings, streams: Strings[str] = ()) -> bytes:
    """Return ``document_of`` as JSON."""
    return escape_controls_in_json(msgspec.json.encode(document_of(app, settings, streams)))


# --- paths ----------------------------------------------------------------------------------------


def _paths(app: QuartTrio, settings: Settings, streams: Strings[str]) -> JsonObject:
    paths: JsonObject = {}
    for rule in app.url_map.iter_rules():
        methods = sorted((rule.methods or set()) - _UNDESCRIBED_METHODS)
        if methods and not is_file_of_page(rule.rule):
            item = paths.setdefault(_templated(rule), _path_item(rule, streams))
            for method in methods:
                item[method.lower()] = _operation(rule, method, settings)
    return paths


def _templated(rule: Rule) -> str:
    return rule.rule.replace("<", "{").replace(">", "}")


def _path_item(rule: Rule, streams: Strings[str]) -> JsonObject:
    if not rule.rule.endswith(_STREAM_PART):
        return {}
    schema = {**_TEXT, "enum": sorted(streams)} if streams else {**_TEXT, "pattern": _STREAM_NAME}
    return {
        "parameters": [
            {
                "name": "stream",
                "in": "path",
                "required": True,
                "description": "The stream that the payloads belong to.",
                "schema": schema,
            }
        ]
    }


def _operation(rule: Rule, method: str, settings: Settings) -> JsonObject:
    operation = OPERATIONS[rule.rule.removesuffix(_STREAM_PART)]
    of_stream = rule.rule.endswith(_STREAM_PART)
    found: JsonObject = {
        "operationId": method.lower() + operation.name + ("OfStream" if of_stream else ""),
        "summary": operation.summary,
        "responses": {
            **_answers(operation, settings),
            **dict(_problems(operation, possible_codes(operation, settings, of_stream=of_stream))),
        },
    }
    if operation.description:
        found["description"] = operation.description
    if operation.body is not None:
        found["parameters"] = [
            one
            for name, one in PARAMETERS.items()
            if name != "wait" or settings.durability != "store"
        ]
        found["requestBody"] = _request_body(operation, settings)
        found["security"] = _security(settings)
        for status in found["responses"].keys() & {_CREATED, _ACCEPTED}:
            links = {"repeat": _repeat(found["operationId"])}
            found["responses"][status] = found["responses"][status] | {"links": links}
        if settings.cors_origins is not None:
            for response in found["responses"].values():
                response.setdefault("headers", {})["Access-Control-Allow-Origin"] = _ALLOW_ORIGIN
    return found


def _repeat(operation_id: str) -> JsonObject:
    """Return the link to the same request with the same Idempotency-Key."""
    return {
        "description": "A client without an answer repeats its request with the same key.",
        "operationId": operation_id,
        "parameters": {"header.Idempotency-Key": "$request.header.Idempotency-Key"},
        "requestBody": "$request.body",
    }


def _request_body(operation: Operation, settings: Settings) -> JsonObject:
    size = f"At most {settings.max_length} bytes (MAX_LENGTH), before and after decompression"
    most = f"{size}, and at most {settings.max_payloads} payloads (MAX_PAYLOADS)"
    types = [JSON_TYPE, f"application/*{JSON_SUFFIX}"]
    if settings.cors_origins is not None:
        types.append(TEXT_TYPE)  # a page can send no other type without a preflight
    if operation.body == "document":
        one: JsonObject = {"schema": {}, "example": {"sensor": 7}}
        content = dict.fromkeys(types, one)
        return {"required": True, "description": f"{size}, in UTF-8.", "content": content}
    many: JsonObject = {
        "schema": {"$ref": "#/components/schemas/Collection"},
        "example": {"payloads": [{"sensor": 7}, "two"]},
    }
    lines: JsonObject = {
        "schema": {"$ref": "#/components/schemas/Lines"},
        "example": '{"sensor": 7}\n"two"\n',
    }
    content = dict.fromkeys(types, many) | dict.fromkeys(NDJSON_TYPES, lines)
    return {"required": True, "description": f"{most}, in UTF-8.", "content": content}


def _answer(operation: Operation) -> JsonObject:
    media_type = METRICS_TYPE if operation.answer == "Metrics" else JSON_TYPE
    return {
        "description": _DESCRIPTIONS[operation.answer],
        "content": {media_type: {"schema": {"$ref": f"#/components/schemas/{operation.answer}"}}},
    }


def _answers(operation: Operation, settings: Settings) -> JsonObject:
    """Return the answers that are no problem, by status."""
    if operation.body is None:
        return {_OK: _answer(operation)}
    if settings.durability == "store":
        return {_CREATED: {name: one for name, one in _STORED.items() if name != "headers"}}
    return {_ACCEPTED: _answer(operation), _CREATED: _STORED}


_STORED: Final = {
    "description": "The payloads are accepted and stored",
    "headers": {"Preference-Applied": {"schema": {"type": "string"}}},
    "content": {JSON_TYPE: {"schema": {"$ref": "#/components/schemas/StoredReceipt"}}},
}
"""The answer to a request with ``Prefer: wait=N`` whose payloads were stored in time."""
_DESCRIPTIONS: Final = {
    "Receipt": "The payloads are accepted",
    "Health": "The process works",
    "Readiness": "Payloads are accepted",
    "Metrics": "The metrics",
    "Figures": "The state of the process",
    "Description": "This description",
}


def _problems(operation: Operation, codes: list[str]) -> Iterator[tuple[str, JsonObject]]:
    for status, group in groupby(codes, lambda code: KINDS[code].status):
        of_status = [*group]
        yield (
            str(status),
            {
                "description": "\n".join(f"* `{code}`: {KINDS[code].title}" for code in of_status),
                "headers": _problem_headers(of_status),
                "content": {
                    CONTENT_TYPE: {
                        "schema": {
                            "allOf": [
                                {"$ref": f"#/components/schemas/{operation.problem}"},
                                {
                                    "properties": {
                                        "type": {"enum": [*map(problem_type, of_status)]},
                                        "status": {"const": status},
                                        "code": {"enum": of_status},
                                    }
                                },
                            ]
                        }
                    }
                },
            },
        )


def _problem_headers(codes: list[str]) -> JsonObject:
    """Return the headers of the problems with one status; required are those that all have."""
    names = sorted({name for code in codes for name in KINDS[code].headers})
    return {
        name: {
            "required": all(name in KINDS[code].headers for code in codes),
            "schema": _SECONDS if name == "Retry-After" else _TEXT,
        }
        for name in names
    }


# --- components -----------------------------------------------------------------------------------


def _schemas(settings: Settings) -> JsonObject:
    return {
        "Collection": _collection(settings),
        "Lines": {**_TEXT, "description": "One JSON value a line; blank lines are skipped."},
        "Receipt": _object(
            id={**_TEXT, "format": "uuid"},
            accepted={"type": "integer", "minimum": 0, "maximum": settings.max_payloads},
        ),
        "StoredReceipt": {
            "allOf": [
                {"$ref": "#/components/schemas/Receipt"},
                {
                    "properties": {
                        "objects": {"type": "array", "items": _TEXT, "maxItems": MOST_KEYS},
                        "more_objects": {"type": "integer", "minimum": 1},
                    },
                    "required": ["objects"],
                },
            ]
        },
        "Health": _object(status={"const": "ok"}),
        "Readiness": _object(status={"const": "ready"}, troubles=_TROUBLES),
        "Metrics": _TEXT,
        "Figures": {"type": "object"},
        "Description": {"type": "object"},
        "Trouble": _object(
            part=_TEXT, code=_TEXT, reason=_TEXT, since={**_TEXT, "format": "date-time"}
        ),
        "Problem": _object(
            type={**_TEXT, "format": "uri"},
            title=_TEXT,
            status={"type": "integer", "minimum": 400, "maximum": 599},
            detail=_TEXT,
            code={**_TEXT, "enum": [*KINDS]},
        ),
        "Unready": {
            "allOf": [
                {"$ref": "#/components/schemas/Problem"},
                {"properties": {"troubles": _TROUBLES}},
            ]
        },
    }


_TROUBLES: Final[JsonObject] = {
    "type": "array",
    "items": {"$ref": "#/components/schemas/Trouble"},
}


def _object(**properties: JsonObject) -> JsonObject:
    return {"type": "object", "required": [*properties], "properties": properties}


def _collection(settings: Settings) -> JsonObject:
    """Return the schema of a collection: an array, or an object with one array of payloads."""
    properties: JsonObject = msgspec.json.schema(Collection)["$defs"]["Collection"]["properties"]
    payloads = {"type": "array", "items": {}, "maxItems": settings.max_payloads}
    return {
        "oneOf": [
            payloads,
            {
                "type": "object",
                "properties": {**properties, **dict.fromkeys(MEMBERS, payloads)},
                "oneOf": [{"required": [member]} for member in MEMBERS],
            },
        ]
    }


def _security_schemes(settings: Settings) -> JsonObject:
    found: JsonObject = {}
    if settings.tls_client_ca is not None:
        found["certificate"] = {"type": "mutualTLS"}
    if settings.auth_tokens is not None:
        found["bearer"] = {"type": "http", "scheme": "bearer"}
        found["basic"] = {
            "type": "http",
            "scheme": "basic",
            "description": "The password is the token; the user name is ignored.",
        }
    return found


def _security(settings: Settings) -> list[dict[str, list[str]]]:
    """Return what a client has to send: a certificate, and a token in one of two ways."""
    certificate: dict[str, list[str]] = {}
    if settings.tls_client_ca is not None:
        certificate = {"certificate": []}
    if settings.auth_tokens is not None:
        return [{**certificate, name: []} for name in ("bearer", "basic")]
    return [certificate] if certificate else []
