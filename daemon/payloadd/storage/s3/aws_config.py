"""What AWS's variables and profiles say about S3, apart from the keys.

botocore reads them, so that they mean the same as in every AWS tool. Settings take precedence: they
may come from ``$CREDENTIALS_DIRECTORY``, which botocore does not read. The sessions made here have
the settings' values too, so that STS and SSO use the same region and the same authorities.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import httpx

from payloadd.config.parsers import S3Url, endpoint_url, region
from payloadd.errors import SettingsError
from payloadd.storage.http1.proxies import Proxies, is_address

if TYPE_CHECKING:
    from botocore.session import Session

    from payloadd.config.settings import Settings


_EXPRESS: Final = ("--x-s3", "--xa-s3")
"""Ends of the names of directory buckets and of their access points (S3 Express One Zone)."""
_ACCELERATED: Final = re.compile(r"s3-accelerate(\.dualstack)?\.amazonaws\.com")


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointOptions:
    """The options of AWS's endpoint rules for S3 ("S3 endpoint ruleset" of the AWS SDKs)."""

    use_fips: bool = False
    use_dualstack: bool = False
    accelerate: bool = False
    use_global: bool = False
    """Use ``s3.amazonaws.com`` for us-east-1 (``us_east_1_regional_endpoint = legacy``)."""
    use_arn_region: bool = True
    """Send requests to the region of an access point's ARN, not to the configured region."""
    disable_multi_region: bool = False
    addressing: str = "auto"
    """``path``, ``virtual`` or ``auto``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AwsConfiguration:
    """Region, endpoint and authorities as configured; each is None if it is not configured."""

    region: str | None = None
    endpoint: str | None = None
    options: EndpointOptions = EndpointOptions()
    ca_bundle: Path | None = None


def needs_botocore(settings: Settings) -> bool:
    """Return whether botocore has to be asked for more than the settings have.

    Without it a start takes less time and memory: an own endpoint, addressed by path, needs none
    of AWS's rules.
    """
    bucket = settings.store_url.bucket if isinstance(settings.store_url, S3Url) else ""
    return (
        settings.aws_region is None
        or settings.aws_endpoint_url is None
        or bool(settings.aws_ignore_configured_endpoint_urls)
        or settings.aws_profile is not None
        or not is_addressed_by_path(bucket, settings.aws_endpoint_url, settings.s3_addressing)
        or _exists(settings.aws_config_file or "~/.aws/config")
        or _exists(settings.aws_shared_credentials_file or "~/.aws/credentials")
    )


def is_addressed_by_path(bucket: str, endpoint: str, addressing: str) -> bool:
    """Return whether a bucket at another endpoint than AWS's needs none of AWS's rules.

    A bucket cannot be a part of the host if the host is an IP address.
    """
    special = bucket.startswith("arn:") or bucket.endswith(_EXPRESS)
    by_path = addressing != "virtual" or is_address(urlsplit(endpoint).hostname or "")
    return by_path and not special and not is_accelerated(endpoint)


def is_accelerated(endpoint: str) -> bool:
    """Return whether an endpoint is that of S3 Transfer Acceleration."""
    return _ACCELERATED.fullmatch(urlsplit(endpoint).netloc) is not None


def configuration_of_settings(settings: Settings) -> AwsConfiguration:
    """Return the configuration of settings for which ``needs_botocore`` is false."""
    return AwsConfiguration(
        region=settings.aws_region,
        endpoint=settings.aws_endpoint_url,
        options=EndpointOptions(addressing=settings.s3_addressing),
        ca_bundle=settings.aws_ca_bundle,
    )


def new_session(settings: Settings) -> Session:
    """Return a session of botocore with the values of the settings."""
    import botocore.utils  # noqa: PLC0415 - importing it takes time and memory
    from botocore.session import Session  # noqa: PLC0415 - as above

    # botocore's own function knows neither networks nor brackets in NO_PROXY: requests to a
    # metadata service (169.254.0.0/16) would go to the proxy.
    botocore.utils.should_bypass_proxies = _bypasses_proxies
    session = Session()
    values = {
        "profile": settings.aws_profile,
        "region": settings.aws_region,
        "config_file": settings.aws_config_file,
        "credentials_file": settings.aws_shared_credentials_file,
        "ca_bundle": settings.aws_ca_bundle,
        "use_fips_endpoint": settings.aws_use_fips_endpoint,
        "use_dualstack_endpoint": settings.aws_use_dualstack_endpoint,
        "ignore_configured_endpoint_urls": settings.aws_ignore_configured_endpoint_urls,
    }
    # Not Session.set_config_variable: an explicit profile would make botocore ignore the keys and
    # roles in the environment.
    store = session.get_component("config_store")
    for name, value in values.items():
        if value is not None:
            store.set_config_variable(name, str(value) if isinstance(value, Path) else value)
    return session


def read_configuration(settings: Settings, session: Session) -> AwsConfiguration:
    """Return the configuration of settings, environment and profile. Blocks: it reads files.

    Raises SettingsError for an invalid value of the profile, and errors of botocore for a profile
    that is missing or cannot be read.
    """
    profile = session.get_scoped_config()
    _check_booleans(profile)
    found = session.get_config_variable("region")
    endpoint = None
    if not session.get_config_variable("ignore_configured_endpoint_urls"):
        endpoint = settings.aws_endpoint_url or _endpoint_of_profile(session, profile)
    bundle = session.get_config_variable("ca_bundle")
    return AwsConfiguration(
        region=None if found is None else _checked_region(found, settings),
        endpoint=endpoint,
        options=_options(settings, session, profile),
        ca_bundle=None if bundle is None else Path(bundle).expanduser(),
    )


def _check_booleans(profile: dict[str, Any]) -> None:
    """Raise SettingsError for ``use_fips_endpoint = yes``, which botocore reads as false."""
    problems = [
        f"AWS configuration: {name}: {profile[name]!r} is not allowed;"
        " allowed is one of true, false"
        for name in (
            "use_fips_endpoint",
            "use_dualstack_endpoint",
            "ignore_configured_endpoint_urls",
        )
        if str(profile.get(name, "true")).lower() not in {"true", "false"}
    ]
    if problems:
        raise SettingsError(problems)


def _checked_region(text: str, settings: Settings) -> str:
    """Return a valid region, which is that of the profile unless the settings have one."""
    name = "AWS configuration: region" if settings.aws_region is None else "AWS_REGION"
    try:
        return region(text)
    except ValueError as error:
        raise SettingsError([f"{name}: {text!r} is not allowed; allowed is {error}"]) from None


def _endpoint_of_profile(session: Session, profile: dict[str, Any]) -> str | None:
    from botocore.configprovider import ConfiguredEndpointProvider  # noqa: PLC0415 - see above

    endpoint = ConfiguredEndpointProvider(session.full_config, profile, "s3").provide()
    try:
        return None if endpoint is None else endpoint_url(endpoint)
    except ValueError as error:
        raise SettingsError([f"AWS configuration: endpoint_url: allowed is {error}"]) from None


def _options(settings: Settings, session: Session, profile: dict[str, Any]) -> EndpointOptions:
    """Return the options, with the precedence of botocore's ``args.py`` and ``client.py``."""
    s3 = session.get_config_variable("s3") or {}
    section = profile.get("s3")
    dualstack = isinstance(section, dict) and str(section.get("use_dualstack_endpoint")).lower()
    addressing = settings.s3_addressing
    if addressing == "auto":
        addressing = s3.get("addressing_style") or "auto"
        if addressing not in {"auto", "path", "virtual"}:
            problem = (
                f"AWS configuration: addressing_style: {addressing!r} is not allowed;"
                " allowed is one of auto, path, virtual"
            )
            raise SettingsError([problem])
    return EndpointOptions(
        use_fips=bool(session.get_config_variable("use_fips_endpoint")),
        use_dualstack=dualstack == "true"
        or bool(session.get_config_variable("use_dualstack_endpoint")),
        accelerate=bool(s3.get("use_accelerate_endpoint")),
        # botocore's own default is ``legacy``; that of the other SDKs and of AWS CLI 2 is regional.
        use_global=s3.get("us_east_1_regional_endpoint") == "legacy",
        use_arn_region=bool(s3.get("use_arn_region", True)),
        disable_multi_region=bool(s3.get("s3_disable_multiregion_access_points")),
        addressing=addressing,
    )


def _bypasses_proxies(url: str) -> bool:
    return Proxies.from_environment().proxy_of(httpx.URL(url)) is None


def _exists(path: Path | str) -> bool:
    """Return whether botocore would find a file of profiles at ``path``."""
    # Not Path.is_file, which raises for some errors; botocore asks in the same way.
    return os.path.isfile(os.path.expanduser(path))  # noqa: PTH111, PTH113
