"""AWS's own endpoint rules for S3: from options and bucket to a URL and the region of signatures.

The rules are the file ``endpoint-rule-set-1.json`` that AWS generates for all its SDKs, and
botocore evaluates them: FIPS, dual stack, partitions, access points and accelerated transfers are
as in every AWS tool. A table of our own was rejected: it was wrong for each of these.

botocore calls its evaluator private. ``tests/storage/s3/test_endpoint_rules.py`` compares every
option with the URL that botocore's client uses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from payloadd.errors import SettingsError
from payloadd.storage.s3.aws_config import is_accelerated

if TYPE_CHECKING:
    from botocore.session import Session

    from payloadd.storage.s3.aws_config import EndpointOptions


class ResolvedEndpoint:
    """A URL below which the keys of a bucket are, and the region of signatures."""

    __slots__ = ("region", "url")

    def __init__(self, url: str, region: str) -> None:
        self.url = url
        self.region = region


class EndpointRules:
    """The rules, loaded. Loading them blocks for some 0.1 s, ``resolve`` for less than 1 ms."""

    def __init__(self, session: Session) -> None:
        from botocore.endpoint_provider import EndpointProvider  # noqa: PLC0415 - see aws_config

        loader = session.get_component("data_loader")
        self._provider = EndpointProvider(
            loader.load_service_model("s3", "endpoint-rule-set-1"), loader.load_data("partitions")
        )

    def resolve(
        self, bucket: str, region: str, endpoint: str | None, options: EndpointOptions
    ) -> ResolvedEndpoint:
        """Return where requests for objects of ``bucket`` go.

        ``bucket`` is a name, an alias or the ARN of an access point. Raises SettingsError if AWS
        has no such endpoint, or if payloadd cannot sign requests to it.
        """
        from botocore.exceptions import BotoCoreError  # noqa: PLC0415 - see aws_config

        try:
            found = self._provider.resolve_endpoint(
                **_parameters(bucket, region, endpoint, options)
            )
        except BotoCoreError as error:
            reason = error.kwargs.get("msg") or str(error)
            raise SettingsError([f"STORE_URL: no endpoint for {bucket!r}: {reason}"]) from None
        return ResolvedEndpoint(found.url, _signing_region(bucket, region, found.properties))


def _parameters(
    bucket: str, region: str, endpoint: str | None, options: EndpointOptions
) -> dict[str, Any]:
    """Return the parameters of the rules, as botocore's client derives them.

    Sources: ``ClientArgsCreator.compute_endpoint_resolver_builtin_defaults`` in ``args.py`` and
    ``customize_endpoint_resolver_builtins`` in ``handlers.py`` of botocore.
    """
    own = endpoint is not None
    if options.accelerate or bucket.startswith("arn:"):
        by_path = False
    elif endpoint is not None and not is_accelerated(endpoint):
        by_path = options.addressing != "virtual"
    else:
        by_path = options.addressing == "path"
    parameters = {
        "Bucket": bucket,
        "Region": region,
        "UseFIPS": options.use_fips and not own,
        "UseDualStack": options.use_dualstack and not own,
        "Accelerate": options.accelerate,
        "ForcePathStyle": by_path,
        "UseGlobalEndpoint": options.use_global and region == "us-east-1",
        "UseArnRegion": options.use_arn_region,
        "DisableMultiRegionAccessPoints": options.disable_multi_region,
    }
    return parameters | ({"Endpoint": endpoint} if own else {})


def _signing_region(bucket: str, region: str, properties: dict[str, Any]) -> str:
    """Return the region of signatures; raises SettingsError if it has to be another signature."""
    schemes = properties.get("authSchemes") or [{"name": "sigv4", "signingName": "s3"}]
    for scheme in schemes:
        if scheme["name"] == "sigv4" and scheme.get("signingName", "s3") == "s3":
            return str(scheme.get("signingRegion", region))
    scheme = schemes[0]
    if scheme.get("signingName") == "s3express":
        reason = (
            "is a directory bucket of S3 Express, which wants sessions (CreateSession);"
            " payloadd does not make them"
        )
    elif scheme["name"] == "sigv4a":
        reason = (
            "wants signatures of version 4A, as multi-Region access points and S3 on Outposts do;"
            " payloadd does not make them"
        )
    else:
        reason = f"wants signatures for {scheme.get('signingName')}; payloadd does not make them"
    allowed = "allowed is a general purpose bucket, or an access point of one Region"
    raise SettingsError([f"STORE_URL: {bucket!r} {reason}; {allowed}"])
