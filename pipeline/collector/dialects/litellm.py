"""LiteLLM's generic API logger: arrays, lines or single entries of its ``StandardLoggingPayload``.

Read from litellm 1.108 and 1.110 (``types/utils.py``, ``integrations/generic_api``). An entry has the whole
call, with prompt and answer; only counts, times, names and labels are read here.
docs/howto/collect-litellm.md says the rules for people. The four that are not plain:

- The attempts of one request (retries, fallbacks) share one ``litellm_call_id``. So only the attempt that
  succeeded has it as its event id, and each that failed has an id of its own, made of the call id and its
  start.
- A team is an org only for callers that write for several orgs. Where the caller's key is for one org, teams
  are parts of this org, and nothing but a label.
- LiteLLM writes a cost of 0 also where it knows no price. Such a 0 is no estimate.
- An answer from LiteLLM's own cache repeats the tokens of the first answer, which nobody was charged for
  again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final
from uuid import UUID

import msgspec
from msgspec import Raw

from pipeline.collector.dialects import Offered, Unreadable, framing
from pipeline.collector.dialects.drafts import (
    SERVICE_TIERS,
    Draft,
    Number,
    Value,
    cents_of_dollars,
    count_of,
    first_text,
    is_true,
    joined,
    metadata_of,
    microseconds_of,
    text_of,
    value_of,
    whole,
)
from pipeline.core import wire
from pipeline.core.wire import Fault

NAME: Final = "litellm"
CONTENT_TYPES: Final = (framing.JSON, *framing.LINES)
ORG_FIELD: Final = "metadata.user_api_key_org_id"
TAGS_MAX: Final = 16
"""So many tags of an entry are looked at."""
_NONE: Final = Raw(b"")


def _struct(name: str, *fields: str) -> msgspec.json.Decoder[Any]:
    members = [(field, Raw, msgspec.field(default=_NONE)) for field in fields]
    return msgspec.json.Decoder(msgspec.defstruct(name, members, gc=False))


_ENTRY: Final = _struct(
    "_Entry",
    *(
        "id",
        "litellm_call_id",
        "call_type",
        "status",
        "cache_hit",
        "model",
        "model_group",
        "custom_llm_provider",
    ),
    *("startTime", "endTime", "prompt_tokens", "completion_tokens", "total_tokens"),
    *("response_cost", "cost_breakdown"),
    *(
        "response_cost_failure_debug_info",
        "zero_cost_diagnostic",
        "error_information",
        "request_tags",
        "end_user",
    ),
    *("metadata", "hidden_params", "response"),
)
_METADATA: Final = _struct(
    "_Metadata",
    *("user_api_key_alias", "user_api_key_hash", "user_api_key_user_id", "user_api_key_end_user_id"),
    *("user_api_key_org_id", "user_api_key_team_id", "user_api_key_team_alias", "team_id", "team_alias"),
    *("user_api_key_project_alias", "user_api_key_project_id", "usage_object"),
)
_RESPONSE: Final = _struct("_Response", "usage", "service_tier")
_HIDDEN: Final = _struct("_Hidden", "usage_object")
_COST: Final = _struct("_Cost", "service_tier", "total_cost")
_ERROR: Final = _struct("_Error", "error_code", "error_class", "llm_provider")
_USAGE: Final = _struct(
    "_Usage",
    *("prompt_tokens", "completion_tokens", "prompt_tokens_details", "completion_tokens_details"),
    *(
        "input_tokens",
        "output_tokens",
        "cache_read_input_tokens",
        "cache_creation_input_tokens",
        "cache_creation",
    ),
    *("service_tier", "speed"),
)
_INPUT: Final = _struct(
    "_Input",
    *(
        "cached_tokens",
        "cache_write_tokens",
        "cache_creation_tokens",
        "cache_creation_token_details",
        "text_tokens",
    ),
)
_OUTPUT: Final = _struct("_Output", "reasoning_tokens")
_WRITES: Final = _struct("_Writes", "ephemeral_1h_input_tokens", "ephemeral_12h_input_tokens")

_DETAILS: Final = "metadata.usage_object.prompt_tokens_details"
_SPELLED: Final = {
    "inputTokens": "prompt_tokens",
    "outputTokens": "completion_tokens",
    "cacheReadTokens": f"{_DETAILS}.cached_tokens",
    "cacheWriteTokens": f"{_DETAILS}.cache_creation_tokens",
    "cacheWrite1hTokens": f"{_DETAILS}.cache_creation_token_details",
    "reasoningTokens": "metadata.usage_object.completion_tokens_details.reasoning_tokens",
}
_INFERENCE: Final = re.compile(
    r"_?a?(completion|text_completion|embedding|image_generation|image_edit|image_variation|moderation|transcription"
    r"|speech|rerank|responses|anthropic_messages|generate_content|generate_content_stream|realtime|ocr|search"
    r"|video_generation|create_video|responses_websocket|compact_responses)"
)
"""Types of calls that ask a model. Others (files, threads, vector stores) are usage only if they have
tokens or a cost."""
_BATCH: Final = re.compile(r"a?retrieve_batch")
_CODE: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""What an error class or code looks like. Anything else could be a message, and is not passed on."""


def read(
    body: bytes, *, default_org: UUID | None = None, content_type: str = "application/json"
) -> Iterator[Offered]:
    """What the entries of a body offer, in its order. LiteLLM sends lines as ``application/json``, too.

    Raises:
        Unreadable: the body is neither JSON nor lines of JSON. It may come after some entries.
    """
    if content_type.partition(";")[0].strip().lower() not in framing.LINES:
        framing.check_text(body)
        if framing.first_of(body) == b"[":
            for entry in framing.elements(body):
                yield _offered(entry, default_org)
            return
        fault = framing.fault_of(body)
        if fault is None:
            yield _offered(body, default_org)
            return
        first = next(framing.lines(body), b"")
        if framing.first_of(first) != b"{" or framing.fault_of(first):
            raise Unreadable(fault)
    for line in framing.lines(body):
        try:
            framing.check_text(line)
            yield _offered(line, default_org)
        except Unreadable as error:
            yield _faulty(str(error))


def _faulty(message: str, field: str = "") -> Offered:
    return Offered(event=None, faults=(Fault(field, message),))


def _offered(text: bytes, default_org: UUID | None) -> Offered:
    if framing.is_too_deep(text):
        return _faulty(framing.TOO_DEEP)
    try:
        entry = framing.decoded(text, _ENTRY)
    except RecursionError:
        return _faulty(framing.TOO_DEEP)
    except msgspec.ValidationError:
        if text.strip() == b"null":  # LiteLLM's logger sends null where it could not make an entry
            return Offered(event=None, passed_over=True)
        return _faulty(framing.NOT_AN_OBJECT)
    except msgspec.DecodeError as error:
        return _faulty(framing.said(error))
    return _Reading(entry).offered(default_org)


def _part(text: Raw, decoder: msgspec.json.Decoder[Any]) -> Any:
    """A part of an entry. What is no object has no members."""
    try:
        return framing.decoded(bytes(text), decoder)
    except (msgspec.DecodeError, RecursionError):
        return decoder.type()


class _Reading:
    """One entry, read once."""

    def __init__(self, entry: Any) -> None:
        self.entry = entry
        self.metadata = _part(entry.metadata, _METADATA)
        self.error = _part(entry.error_information, _ERROR)
        self.response = _part(entry.response, _RESPONSE)
        self.cost = _part(entry.cost_breakdown, _COST)
        self.reported = _part(self.response.usage, _USAGE)
        usages = (
            self.metadata.usage_object,
            _part(entry.hidden_params, _HIDDEN).usage_object,
            self.response.usage,
        )
        self.usage = _part(
            next((one for one in usages if framing.first_of(bytes(one)) == b"{"), _NONE), _USAGE
        )
        self.call_type = value_of(entry.call_type)
        self.status = value_of(entry.status)
        self.is_cached = is_true(entry.cache_hit)
        self.provider = first_text(
            value_of(entry.custom_llm_provider),
            value_of(self.error.llm_provider),
            chars_max=wire.BODY_BYTES_MAX,
        )

    def offered(self, default_org: UUID | None) -> Offered:
        if self._is_no_usage():
            return Offered(event=None, passed_over=True)
        draft = Draft(NAME)
        metadata = self.metadata
        named = [(ORG_FIELD, value_of(metadata.user_api_key_org_id))]
        if default_org is None:
            named += [
                ("metadata.user_api_key_team_id", value_of(metadata.user_api_key_team_id)),
                ("metadata.team_id", value_of(metadata.team_id)),
            ]
        draft.put_org(*named, default=default_org)
        draft.put_event_id(self._source_id(), "litellm_call_id")
        draft.put_model(self.provider, self._model(), "model")
        draft.put(
            "clientId",
            first_text(
                value_of(metadata.user_api_key_alias),
                value_of(metadata.user_api_key_hash),
                chars_max=wire.CLIENT_ID_CHARS_MAX,
            ),
            "metadata.user_api_key_alias",
        )
        draft.put_actor(value_of(metadata.user_api_key_user_id), "metadata.user_api_key_user_id")
        self._put_times(draft)
        self._put_outcome(draft)
        self._put_tokens(draft)
        draft.put("costEstimateCents", self._cents(), "response_cost")
        draft.put("serviceTier", self._service_tier(), "response.service_tier")
        draft.put("metadata", self._labels() or None, "metadata")
        return draft.offered()

    def _is_no_usage(self) -> bool:
        """Was no model asked?"""
        is_inference = self._is_inference()
        if self.status == "failure":
            return (
                not is_inference or self.provider is None
            )  # without a provider, LiteLLM itself refused the call
        costs = whole(value_of(self.entry.prompt_tokens)) or whole(value_of(self.entry.completion_tokens))
        return self.status == "success" and not is_inference and not costs and not self._costs()

    def _is_inference(self) -> bool:
        return isinstance(self.call_type, str) and _INFERENCE.fullmatch(self.call_type) is not None

    def _source_id(self) -> str | None:
        call_id, entry_id = value_of(self.entry.litellm_call_id), value_of(self.entry.id)
        known = first_text(call_id, entry_id, chars_max=wire.BODY_BYTES_MAX)
        if known is None:
            return None
        if self.status == "failure":
            return f"{known}/failure/{value_of(self.entry.startTime)}"
        if isinstance(self.call_type, str) and _BATCH.fullmatch(self.call_type) and isinstance(entry_id, str):
            return (
                f"batch/{entry_id}"  # each look at a finished batch is an entry with the batch's whole usage
            )
        return known

    def _model(self) -> str | None:
        """The model's name without its provider, which LiteLLM puts before it in some entries and not in
        others."""
        name = first_text(
            value_of(self.entry.model), value_of(self.entry.model_group), chars_max=wire.BODY_BYTES_MAX
        )
        return name and (name.removeprefix(f"{self.provider}/") or name)

    def _put_times(self, draft: Draft) -> None:
        """The event's time is the end of the call, as its tokens are known then."""
        times = []
        for name in ("startTime", "endTime"):
            given = value_of(getattr(self.entry, name))
            times.append(microseconds_of(given))
            if given is not None and times[-1] is None:
                draft.faults.append(Fault(name, "expected seconds since 1970, as a number"))
        draft.put_times(*times, start="startTime", end="endTime")

    def _put_outcome(self, draft: Draft) -> None:
        if self.status == "success":
            draft.put("status", "success", "status")
            return
        if self.status != "failure":
            draft.put("status", None, "status")
            if self.status is not None:
                draft.faults.append(Fault("status", "expected success or failure"))
            return
        codes = [
            text_of(value_of(one), wire.BODY_BYTES_MAX) or ""
            for one in (self.error.error_class, self.error.error_code)
        ]
        if isinstance(number := value_of(self.error.error_code), Number):
            codes[1] = number
        status = "error"
        if codes[1] == "429" or "RateLimit" in codes[0]:
            status = "throttled"
        elif codes[1] in ("408", "504") or "Timeout" in codes[0]:
            status = "timeout"
        draft.put("status", status, "status")
        code = next((str(code) for code in codes if _CODE.fullmatch(code)), None)
        draft.put("errorCode", code, "error_information.error_class")

    def _put_tokens(self, draft: Draft) -> None:
        usage, given = self.usage, dict.fromkeys(_SPELLED)
        if self.is_cached:
            draft.put_tokens(given, _SPELLED, is_cache_outside=False)
            return
        details, output = (
            _part(usage.prompt_tokens_details, _INPUT),
            _part(usage.completion_tokens_details, _OUTPUT),
        )
        writes = _part(details.cache_creation_token_details, _WRITES)
        if framing.first_of(bytes(details.cache_creation_token_details)) != b"{":
            writes = _part(usage.cache_creation, _WRITES)
        read = _first_count(details.cached_tokens, usage.cache_read_input_tokens)
        written = _first_count(
            details.cache_write_tokens, details.cache_creation_tokens, usage.cache_creation_input_tokens
        )
        long = sum(
            whole(value_of(one))
            for one in (writes.ephemeral_1h_input_tokens, writes.ephemeral_12h_input_tokens)
        )
        counts = {"cacheReadTokens": read, "cacheWriteTokens": written, "cacheWrite1hTokens": long}
        tokens_in = value_of(self.entry.prompt_tokens)
        if self.status == "success" and self._is_inference() and (unknown := self._unknown_usage()):
            draft.faults.append(unknown)
        draft.put_tokens(
            {
                "inputTokens": tokens_in,
                "outputTokens": value_of(self.entry.completion_tokens),
                "reasoningTokens": value_of(output.reasoning_tokens),
                **{name: Number(count) for name, count in counts.items()},
            },
            _SPELLED,
            is_cache_outside=bool(read or written) and self._is_cache_outside(whole(tokens_in), details),
        )

    def _unknown_usage(self) -> Fault | None:
        """The fault of a call whose tokens the entry does not tell.

        LiteLLM writes 0 for calls that have no tokens, such as speech. So an entry without the fields is not
        such a call, and 0 would hide its usage.
        """
        kinds = [value_of(one) for one in (self.entry.prompt_tokens, self.entry.completion_tokens)]
        if kinds == [None, None]:
            return Fault(
                "prompt_tokens", "is missing, and so is completion_tokens: a call without tokens has 0"
            )
        if not any(map(whole, kinds)) and whole(value_of(self.entry.total_tokens)):
            message = "has tokens, and neither prompt_tokens nor completion_tokens says which kind they are"
            return Fault("total_tokens", message)
        return None

    def _is_cache_outside(self, tokens_in: int, details: Any) -> bool:
        """Do the input tokens leave out the cached ones, as Anthropic reports them?

        Today's LiteLLM adds them up for all providers. Older ones do not for Anthropic's own route
        (``/v1/messages``): then the answer's own usage is Anthropic's, or all input tokens are text.
        """
        reported = self.reported
        if bytes(reported.cache_read_input_tokens) and not bytes(reported.prompt_tokens):
            return whole(value_of(reported.input_tokens)) == tokens_in
        return count_of(value_of(details.text_tokens)) == tokens_in

    def _costs(self) -> bool:
        cost = value_of(self.entry.response_cost)
        return isinstance(cost, Number) and any(digit in "123456789" for digit in re.split("[eE]", cost)[0])

    def _cents(self) -> Value:
        """The estimate. None: LiteLLM does not know what the call cost."""
        if self.is_cached:
            return "0"
        cost = value_of(self.entry.response_cost)
        if self.status == "failure" or not isinstance(cost, Number) or self._costs():
            return cents_of_dollars(cost)
        unknown = any(
            bytes(one) not in (b"", b"null")
            for one in (self.entry.response_cost_failure_debug_info, self.entry.zero_cost_diagnostic)
        )
        is_known = not unknown and isinstance(value_of(self.cost.total_cost), Number)
        return "0" if is_known else None

    def _service_tier(self) -> str | None:
        """The tier that was charged: what the provider's answer says, else what LiteLLM computed the cost
        with."""
        if isinstance(self.call_type, str) and _BATCH.fullmatch(self.call_type):
            return "batch"
        if value_of(self.usage.speed) == "fast":
            return "fast"
        tier = first_text(
            *map(value_of, (self.usage.service_tier, self.response.service_tier, self.cost.service_tier)),
            chars_max=64,
        )
        return None if tier is None else SERVICE_TIERS.get(tier, "standard")

    def _labels(self) -> dict[str, str]:
        metadata, entry = self.metadata, self.entry
        team, project = (
            first_text(*map(value_of, values), chars_max=wire.VALUE_CHARS_MAX)
            for values in (
                (
                    metadata.user_api_key_team_alias,
                    metadata.team_alias,
                    metadata.user_api_key_team_id,
                    metadata.team_id,
                ),
                (metadata.user_api_key_project_alias, metadata.user_api_key_project_id),
            )
        )
        try:
            tags = [value_of(tag) for tag in islice(framing.elements(bytes(entry.request_tags)), TAGS_MAX)]
        except Unreadable:  # no array
            tags = []
        return metadata_of(
            {
                "user": value_of(metadata.user_api_key_user_id),
                "end_user": first_text(
                    value_of(entry.end_user),
                    value_of(metadata.user_api_key_end_user_id),
                    chars_max=wire.VALUE_CHARS_MAX,
                ),
                "team": team,
                "project": project,
                "key_alias": value_of(metadata.user_api_key_alias),
                "model_group": value_of(entry.model_group),
                "tags": joined(
                    tag for tag in tags if isinstance(tag, str) and not tag.startswith("User-Agent: ")
                ),  # LiteLLM makes tags of the caller's program
                "cache": "hit" if self.is_cached else None,
            }
        )


def _first_count(*texts: Raw) -> int:
    return next((count for text in texts if (count := whole(value_of(text)))), 0)
