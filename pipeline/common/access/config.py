"""What authentication is told: frozen dataclasses, whose fields are settings."""

from __future__ import annotations

import os
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from pipeline.common import settings
from pipeline.common.settings import of, required


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenConfig:
    """Exactly one of ``secret`` (HS256), ``jwks_url`` and ``jwks_file`` is set."""

    issuer: str = required("JWT_ISSUER")
    audience: str = required("JWT_AUDIENCE")
    secret: str | None = of("JWT_SECRET")
    jwks_url: str | None = of("JWT_JWKS_URL")
    jwks_file: str | None = of("JWT_JWKS_FILE")
    jwks_cache_s: float = of("JWT_JWKS_CACHE")
    leeway_s: float = of("JWT_LEEWAY")
    roles_claim: tuple[str, ...] = of("JWT_ROLES_CLAIM")
    orgs_claim: tuple[str, ...] = of("JWT_ORGS_CLAIM")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthConfig:
    """``mode`` is none, gateway or jwt; ``tokens`` is set for jwt, ``key_secret`` where keys are in use."""

    mode: str = of("AUTH_MODE")
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = of("TRUSTED_PROXIES")
    tokens: TokenConfig | None = None
    key_secret: str | None = of("API_KEY_SECRET")
    key_cache_s: float = of("API_KEY_CACHE")


def auth_config(values: settings.Values) -> AuthConfig:
    """The configuration of authentication.

    Raises:
        settings.ConfigError: the file of keys cannot be read. Other processes share the environment and need
            not have that file, so only a process that authenticates looks for it.
    """
    tokens = values.make(TokenConfig) if values["AUTH_MODE"] == "jwt" else None
    if tokens is not None and tokens.jwks_file is not None and not os.access(tokens.jwks_file, os.R_OK):
        raise settings.ConfigError([f"JWT_JWKS_FILE={tokens.jwks_file!r}: expected a file that can be read"])
    return values.make(AuthConfig, tokens=tokens)
