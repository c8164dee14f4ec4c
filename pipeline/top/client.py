"""One question to the API: conditional, within the caller's allowance, with its failures told apart.

An answer that has not changed is not sent again (ETag). The client keeps the last answers for that. It asks
no more while less than a tenth of the caller's requests of this minute are left, so a view that somebody
forgot to close cannot use up the allowance of the programs that have the same key.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, Self

import aiohttp

from pipeline.common.operator import OperatorError
from pipeline.common.settings import of
from pipeline.top.texts import safe

BASE: Final = "/analytics/v1"
_REQUEST_S: Final = 15.0
_SILENT_S: Final = 20.0
"""A live stream says something every 5 s. One that is silent for so long is dead."""
ANSWER_BYTES_MAX: Final = 64 << 20
KEPT_ANSWERS: Final = 128
KEPT_BYTES_MAX: Final = 64 << 20
_LINE_BYTES_MAX: Final = 1 << 20
_RETRY_AFTER_S_MAX: Final = 3600.0
_SPARE: Final = 0.1
_REMAINING: Final = re.compile(r"\br=(\d{1,12})\b.*?\bt=(\d{1,6})\b")
_QUOTA: Final = re.compile(r"\bq=(\d{1,12})\b")


class Refused(OperatorError):
    """The API will not answer this, however often it is asked. ``status`` is that of its answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Away(Exception):
    """The API does not answer now; ``retry_after_s`` is how long it wants to be left alone."""

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiConfig:
    """Whom to ask, and as whom. The key and the token are secrets: never log them."""

    url: str = of("SPENDSTREAM_API_URL")
    key: str | None = of("SPENDSTREAM_API_KEY")
    token: str | None = of("SPENDSTREAM_TOKEN")

    def headers(self) -> dict[str, str]:
        key = {"X-API-Key": self.key} if self.key else {}
        return key | ({"Authorization": f"Bearer {self.token}"} if self.token else {})


@dataclass(frozen=True, slots=True)
class Answer:
    """A decoded answer. Its bytes came at ``read_s`` of the monotonic clock, perhaps before later 304s."""

    body: Any
    read_s: float


@dataclass(slots=True)
class _Kept:
    tag: str
    answer: Answer
    size: int


@dataclass(slots=True)
class Api:
    """The API. Use it as a context."""

    config: ApiConfig
    requests: int = field(default=0, init=False)
    """How many were sent."""
    unchanged: int = field(default=0, init=False)
    """How many of them were answered 304."""
    _session: aiohttp.ClientSession | None = field(default=None, init=False)
    _kept: OrderedDict[str, _Kept] = field(default_factory=OrderedDict, init=False)
    _rest_until_s: float = field(default=0.0, init=False)

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers=self.config.headers(), timeout=aiohttp.ClientTimeout(total=_REQUEST_S)
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def get(self, path: str, query: Sequence[tuple[str, str]] = ()) -> Answer:
        """The answer to one question. ``path`` is below ``/analytics/v1``.

        Raises:
            Away: there is no answer now.
            Refused: there will be none.
        """
        assert self._session is not None
        wait_s = self._rest_until_s - time.monotonic()
        if wait_s > 0:
            raise Away("the API's rate limit is nearly used up", wait_s)
        name = f"{path}?{'&'.join(f'{key}={value}' for key, value in query)}"
        kept = self._kept.get(name)
        headers = {"If-None-Match": kept.tag} if kept else {}
        self.requests += 1
        try:
            async with self._session.get(
                f"{self._root}{path}", params=query, headers=headers, allow_redirects=False
            ) as response:
                body = await _body(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Away(f"{self.config.url} does not answer: {safe(_reason(error))}") from error
        self._rest(response.headers)
        if response.status == HTTPStatus.NOT_MODIFIED and kept:
            self.unchanged += 1
            self._kept.move_to_end(name)
            return kept.answer
        _check(response, body, path)
        try:
            answer = Answer(json.loads(body), time.monotonic())
        except ValueError:
            raise Refused(
                response.status, f"{self.config.url} answers with no JSON: is it the API?"
            ) from None
        if tag := response.headers.get("ETag"):
            self._keep(name, _Kept(tag, answer, len(body)))
        return answer

    async def pages(
        self, path: str, query: Sequence[tuple[str, str]], items: str, pages_max: int
    ) -> tuple[Answer, list[Any], bool]:
        """The first answer, the items of at most ``pages_max`` pages, and whether there are more."""
        first = answer = await self.get(path, query)
        found = list(_items(answer, items))
        for _ in range(pages_max - 1):
            cursor = answer.body["nextCursor"]
            if cursor is None:
                break
            answer = await self.get(path, [*query, ("cursor", cursor)])
            found += _items(answer, items)
        return first, found, answer.body["nextCursor"] is not None

    async def live(self, org_id: str) -> AsyncGenerator[tuple[str, Any]]:
        """The messages of an org's live stream, each with its kind, until the stream ends.

        Raises `Away` and `Refused`.
        """
        assert self._session is not None
        path = f"/orgs/{org_id}/live"
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_REQUEST_S, sock_read=_SILENT_S)
        self.requests += 1
        try:
            async with self._session.get(
                f"{self._root}{path}", timeout=timeout, allow_redirects=False, read_bufsize=_LINE_BYTES_MAX
            ) as response:
                if response.status != HTTPStatus.OK:
                    _check(response, await _body(response), path)
                fields: dict[str, str] = {}
                async for line in response.content:
                    text = line.decode("utf-8", "replace").rstrip("\r\n")
                    if text:
                        name, _, value = text.partition(":")
                        fields[name] = value.removeprefix(" ")
                    elif "data" in fields:
                        yield fields.get("event", ""), json.loads(fields["data"])
                        fields = {}
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise Away(f"the live stream ended: {safe(_reason(error))}") from error

    @property
    def _root(self) -> str:
        return self.config.url.removesuffix(BASE) + BASE

    def _keep(self, name: str, kept: _Kept) -> None:
        self._kept[name] = kept
        self._kept.move_to_end(name)
        while len(self._kept) > KEPT_ANSWERS or (
            len(self._kept) > 1 and sum(one.size for one in self._kept.values()) > KEPT_BYTES_MAX
        ):
            self._kept.popitem(last=False)

    def _rest(self, headers: Mapping[str, str]) -> None:
        """Ask no more in this minute if little of the allowance is left."""
        left = _REMAINING.search(headers.get("RateLimit", ""))
        quota = _QUOTA.search(headers.get("RateLimit-Policy", ""))
        if left and quota and int(left[1]) < int(quota[1]) * _SPARE:
            self._rest_until_s = time.monotonic() + int(left[2])


def _items(answer: Answer, items: str) -> list[Any]:
    found = answer.body.get(items) if isinstance(answer.body, dict) else None
    if not isinstance(found, list):
        raise Refused(200, f"the answer has no {items}: is it the API?")
    return found


async def _body(response: aiohttp.ClientResponse) -> bytes:
    pieces, size = [], 0
    async for piece in response.content.iter_any():
        size += len(piece)
        if size > ANSWER_BYTES_MAX:
            raise Away(f"an answer has more than {ANSWER_BYTES_MAX >> 20} MiB")
        pieces.append(piece)
    return b"".join(pieces)


def _check(response: aiohttp.ClientResponse, body: bytes, path: str) -> None:
    """Raises `Away` or `Refused` for any status but 200."""
    status = response.status
    if status == HTTPStatus.OK:
        return
    said = f"the API answers {status} to {path}{_detail(body)}"
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        raise Away(said, _retry_after(response.headers) or 1.0)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.REQUEST_TIMEOUT:
        raise Away(said, _retry_after(response.headers))
    raise Refused(status, said)


def _retry_after(headers: Mapping[str, str]) -> float:
    text = headers.get("Retry-After", "")
    return min(float(text), _RETRY_AFTER_S_MAX) if text.isascii() and text.isdigit() else 0.0


def _detail(body: bytes) -> str:
    """What a problem says, with its faults, in a line."""
    try:
        problem = json.loads(body)
        faults = [f"{one['field']}: {one['message']}" for one in problem.get("errors") or ()]
        words = [str(problem["detail"]), *faults]
    except (ValueError, TypeError, KeyError, AttributeError):
        return ""
    return f": {safe('; '.join(words))}"


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__


async def pause(seconds: float, moved: asyncio.Event) -> bool:
    """Wait until ``moved`` is set, at most ``seconds``. Returns whether it was set."""
    try:
        async with asyncio.timeout(seconds):
            await moved.wait()
    except TimeoutError:
        return False
    return True
