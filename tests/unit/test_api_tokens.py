"""Bearer tokens: what is believed, what is refused, and when the issuer's keys are read again."""

import base64
import hmac
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.common import parsers
from pipeline.common.access.caller import is_subject
from pipeline.common.access.config import TokenConfig
from pipeline.common.access.tokens import usable_keys
from pipeline.common.problems import Problem
from tests.support.tokens import (
    ANA,
    CLAIMS,
    EC,
    ED,
    HS,
    NOW,
    ORG,
    OTHER_RSA,
    RSA,
    SECRET,
    SET,
    jwk,
    jwks,
    refused,
    token,
    tokens_of,
)

WEAK_RSA = rsa.generate_private_key(public_exponent=65537, key_size=1024)


@pytest.fixture
def from_file(tmp_path: Path) -> TokenConfig:
    path = tmp_path / "jwks.json"
    path.write_bytes(SET)
    return replace(HS, secret=None, jwks_file=str(path))


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"), [(RSA, "RS256", "r"), (EC, "ES256", "e"), (ED, "EdDSA", "d")]
)
async def test_each_kind_of_key_signs_for_its_caller(
    from_file: TokenConfig, key: Any, algorithm: str, kid: str
) -> None:
    tokens = tokens_of(from_file)
    assert await tokens.caller(token(key, algorithm, kid)) == ANA
    assert await tokens.caller(token(key, algorithm)) == ANA  # the only key of its kind needs no name


async def test_a_shared_secret_signs_too() -> None:
    assert await tokens_of(HS).caller(token(SECRET, "HS256")) == ANA


def unsigned(header: dict[str, Any]) -> str:
    parts = (json.dumps(part).encode() for part in (header, CLAIMS))
    return ".".join([*(base64.urlsafe_b64encode(p).rstrip(b"=").decode() for p in parts), ""])


async def test_no_algorithm_and_the_wrong_one_are_refused(from_file: TokenConfig) -> None:
    pem = RSA.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    mac = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    for secret in (pem, pem.strip(), jwks(jwk(RSA, "r")), b"", b"r"):
        body = unsigned({"alg": "HS256", "kid": "r"})[:-1]
        signature = base64.urlsafe_b64encode(mac.sign(body.encode(), secret)).rstrip(b"=").decode()
        await refused(tokens_of(from_file), f"{body}.{signature}")
    for config in (from_file, HS):
        for algorithm in ("none", "None", "NONE", "", None, "HS512", "RS512", 1):
            for kid in ({}, {"kid": "r"}):
                await refused(tokens_of(config), unsigned({"alg": algorithm, **kid}))
    await refused(tokens_of(HS), token(RSA, "RS256", "r"))
    await refused(tokens_of(from_file), token(SECRET, "HS256"))
    # A key is good for its own algorithm only, whatever the header says.
    await refused(tokens_of(from_file), token(EC, "ES256", "r"))
    await refused(tokens_of(from_file), token(RSA, "RS512", "r"))
    await refused(tokens_of(from_file), token(OTHER_RSA, "RS256", "r"))
    await refused(tokens_of(HS), token(SECRET + "!", "HS256"))


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://other.test"},
        {"iss": None},
        {"aud": "else"},
        {"aud": None},
        {"exp": None},
        {"exp": "soon"},
        {"exp": float("inf")},
        {"exp": int(NOW.timestamp()) - 30},
        {"nbf": int(NOW.timestamp()) + 31},
        {"nbf": True},
        {"sub": None},
        {"sub": " "},
        {"sub": "x" * 201},
        {"orgs": "all"},
        {"orgs": f"{ORG},{ORG}"},
        {"orgs": ["all"]},
        {"orgs": [1]},
        {"orgs": {}},
        {"roles": {"admin": True}},
        {"roles": [["admin"]]},
    ],
)
async def test_claims_that_do_not_hold_are_refused(claims: dict[str, Any]) -> None:
    await refused(tokens_of(HS), token(SECRET, "HS256", **claims))


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": NOW.timestamp() - 29.5},
        {"nbf": int(NOW.timestamp()) + 30},
        {"iat": int(NOW.timestamp()) + 3600},
        {"aud": ["else", "spendstream"]},
    ],
)
async def test_the_clock_of_the_issuer_may_be_off_by_the_leeway(claims: dict[str, Any]) -> None:
    assert await tokens_of(HS).caller(token(SECRET, "HS256", **claims)) == ANA


async def test_absent_orgs_and_roles_are_none_of_them() -> None:
    caller = await tokens_of(HS).caller(token(SECRET, "HS256", orgs=None, roles=None))
    assert (caller.orgs, caller.roles) == (frozenset(), frozenset())


@pytest.mark.parametrize(
    ("roles_claim", "orgs_claim", "claims"),
    [
        ("roles", "orgs", {"roles": "analytics:usage:read", "orgs": str(ORG)}),
        ("scope", "orgs", {"scope": " analytics:usage:read  ", "roles": ["admin"]}),
        ("realm_access.roles", "orgs", {"realm_access": {"roles": ["analytics:usage:read"]}}),
        (
            "https://a.test/roles",
            "a.b.c",
            {"https://a.test/roles": ["analytics:usage:read"], "a": {"b": {"c": [str(ORG)]}}},
        ),
        (
            r"my\.roles",
            r"https://a\.test/x.orgs",
            {"my.roles": ["analytics:usage:read"], "https://a.test/x": {"orgs": str(ORG)}},
        ),
        (r"back\\slash.\.", "orgs", {"back\\slash": {".": "analytics:usage:read"}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_the_settings_say_which_claims_have_roles_and_orgs(
    roles_claim: str, orgs_claim: str, claims: dict[str, Any]
) -> None:
    config = replace(HS, roles_claim=parsers.claim(roles_claim), orgs_claim=parsers.claim(orgs_claim))
    kept = {"roles": None} | ({} if orgs_claim == "orgs" else {"orgs": None})
    assert await tokens_of(config).caller(token(SECRET, "HS256", **(kept | claims))) == ANA


async def test_several_words_of_a_claim_are_several_roles() -> None:
    other = "bbbbbbbb-0000-4000-8000-000000000002"
    claims = {"roles": "openid analytics:usage:read\tprofile", "orgs": f"{ORG} {other}"}
    caller = await tokens_of(HS).caller(token(SECRET, "HS256", **claims))
    assert caller.roles == {"openid", "analytics:usage:read", "profile"}
    assert caller.orgs == frozenset((ORG, UUID(other)))


@pytest.mark.parametrize("claims", [{}, {"realm_access": {}}, {"realm_access": {"Roles": ["admin"]}}])
async def test_a_path_that_leads_nowhere_gives_no_roles(claims: dict[str, Any]) -> None:
    config = replace(HS, roles_claim=("realm_access", "roles"))
    caller = await tokens_of(config).caller(
        token(SECRET, "HS256", **{"realm_access.roles": ["admin"], **claims})
    )
    assert caller.roles == frozenset()


@pytest.mark.parametrize("value", ["admin", ["admin"], 1, {"roles": 1}, {"roles": None}])
async def test_a_path_through_what_is_no_object_is_refused_by_its_name(value: Any) -> None:
    config = replace(HS, roles_claim=("realm.access", "roles"))
    reason = await refused(tokens_of(config), token(SECRET, "HS256", **{"realm.access": value}))
    assert reason == r"The token's claim realm\.access.roles must be a list of texts, or one text of them."


@pytest.mark.parametrize(
    "text", ["", "x", "a.b.c", "é.é.é", "." * 9000, "e30.e30.e30", token(SECRET, "HS256") + "x"]
)
async def test_what_is_no_token_is_refused(text: str) -> None:
    await refused(tokens_of(HS), text)


def signed(claims: str, header: str = '{"alg":"HS256","typ":"JWT"}') -> str:
    """A token whose signature is right, of JSON that no library would write."""
    parts = [
        base64.urlsafe_b64encode(p.encode("utf-8", "surrogatepass")).rstrip(b"=") for p in (header, claims)
    ]
    body = b".".join(parts)
    mac = base64.urlsafe_b64encode(hmac.digest(SECRET.encode(), body, "sha256")).rstrip(b"=")
    return (body + b"." + mac).decode()


def claims_with(name: str, value: str) -> str:
    """The claims as JSON text, one of them ``value`` as it stands."""
    return json.dumps({**CLAIMS, name: "@"}).replace('"@"', value)


DIGITS = "9" * 400
NO_TIMES = (
    DIGITS,
    f"-{DIGITS}",
    "9" * 5000,
    f"{DIGITS}.0",
    "1e999",
    "-1e999",
    "NaN",
    "Infinity",
    "-Infinity",
    "[1]",
    "{}",
)


@pytest.mark.parametrize("name", ["exp", "nbf", "iat"])
@pytest.mark.parametrize("value", NO_TIMES, ids=lambda value: value[:12])
async def test_a_number_that_is_no_time_is_refused_and_no_fault_of_ours(name: str, value: str) -> None:
    await refused(tokens_of(HS), signed(claims_with(name, value)))


@pytest.mark.parametrize("name", ["exp", "sub", "orgs", "roles", "aud", "iss", "else"])
@pytest.mark.parametrize("depth", [100, 2000, 50_000])
async def test_claims_nested_without_end_are_refused(name: str, depth: int) -> None:
    text = signed(claims_with(name, "[" * depth + "]" * depth))
    if name == "else" and depth == 100:
        assert await tokens_of(HS).caller(text) == ANA
    elif name != "else" or depth == 50_000 or await _is_too_deep_for_this_python(text):
        await refused(tokens_of(HS), text)


async def _is_too_deep_for_this_python(text: str) -> bool:
    """Is a token with a claim that nobody looks at refused for its depth? Each Python has its own limit."""
    try:
        return await tokens_of(HS).caller(text) != ANA
    except Problem:
        return True


@pytest.mark.parametrize(
    "kid",
    ['"' + "k" * 100_000 + '"', DIGITS, "[]", "{}", "true", '"\\ud800"', '"\\u0000"'],
    ids=lambda kid: kid[:9],
)
async def test_a_key_id_that_names_no_key_is_refused(from_file: TokenConfig, kid: str) -> None:
    header = '{"alg":"RS256","kid":' + kid + "}"
    await refused(tokens_of(from_file), signed(json.dumps(CLAIMS), header))


@pytest.mark.parametrize("subject", ["a\0b", "a\nb", "\ud800", "\x1b[31m"])
async def test_a_subject_that_no_table_and_no_log_can_hold_is_refused(subject: str) -> None:
    await refused(tokens_of(HS), signed(json.dumps({**CLAIMS, "sub": subject})))


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**308, 10**410)
    | st.floats()
    | st.text(alphabet=st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from((*CLAIMS, "nbf", "iat", "jti", "b64", "crit", "alg", "kid", "typ", "x"))


@settings(max_examples=400)
@given(
    claims=JSON_VALUES | st.dictionaries(NAMES, JSON_VALUES, max_size=6),
    header=st.dictionaries(NAMES, JSON_VALUES, max_size=4),
    kept=st.booleans(),
)
async def test_whatever_a_signed_token_says_it_names_a_caller_or_is_refused(
    claims: Any, header: dict[str, Any], kept: bool
) -> None:
    if kept and isinstance(claims, dict):
        claims = {**CLAIMS, **claims}
    text = signed(json.dumps(claims), json.dumps({"typ": "JWT", **header, "alg": "HS256"}))
    try:
        caller = await tokens_of(HS).caller(text)
    except Problem:  # a 401: there is no other here
        return
    assert is_subject(caller.subject)
    assert caller.orgs is not None


async def test_a_header_that_must_be_understood_is_refused() -> None:
    text = jwt.encode(CLAIMS, SECRET, "HS256", headers={"crit": ["b64"], "b64": True})
    await refused(tokens_of(HS), text)


def test_only_public_signing_keys_of_our_algorithms_are_usable() -> None:
    secret = {"kty": "oct", "kid": "s", "k": "c2VjcmV0"}
    p384 = ec.generate_private_key(ec.SECP384R1())
    document = jwks(
        jwk(RSA, "r"),
        jwk(WEAK_RSA, "weak"),
        jwk(OTHER_RSA, "enc", use="enc"),
        jwk(OTHER_RSA, "rs512", alg="RS512"),
        jwk(p384, "p384"),
        secret,
        {"kty": "?"},
    )
    assert [key.key_id for key in usable_keys(document)] == ["r"]
    for junk in (b"", b"[]", b"{}", b'{"keys": {}}', jwks(secret), jwks()):
        with pytest.raises(ValueError, match="JWKS"):
            usable_keys(junk)
