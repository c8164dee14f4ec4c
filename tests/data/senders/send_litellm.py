"""Calls through LiteLLM, reported by its own loggers; no provider answers. Runs in the senders' environment.

GENERIC_LOGGER_ENDPOINT and GENERIC_LOGGER_HEADERS set the logger up. With the argument ``lines``, the logger
is one that sends lines and tries again. CANARY is in each prompt, answer and error. The last line on stdout
is JSON: what LiteLLM told its caller of each call. Then the program waits until it is killed or its stdin is
closed, because loggers send in the background.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

import litellm
from litellm.caching.caching import Cache
from litellm.integrations.generic_api.generic_api_callback import GenericAPILogger

CANARY = os.environ["CANARY"]
ORG_NAME = os.environ["ORG_NAME"]
MESSAGES = [{"role": "system", "content": f"Say {CANARY}"}, {"role": "user", "content": f"What is {CANARY}?"}]
ANSWER = f"It is {CANARY}, and nothing else."
told: list[dict[str, Any]] = []


async def call(kind: str, model: str, **more: Any) -> None:
    """Ask a model, and keep what LiteLLM says of it."""
    metadata = {"user_api_key_alias": "checkout", "tags": ["search"], "note": CANARY}
    metadata |= more.pop("metadata", {})
    more = {"api_key": CANARY, "num_retries": 0, "max_retries": 0, **more}
    fact: dict[str, Any] = {"kind": kind, "model": model, "input": 0, "output": 0, "cost": 0.0}
    told.append(fact)
    try:
        answer = await litellm.acompletion(model=model, messages=MESSAGES, metadata=metadata, **more)
        if more.get("stream"):
            chunks = [chunk async for chunk in answer]
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            usage = chunks[-1].usage
        else:
            text = answer.choices[0].message.content
            usage = answer.usage
    except Exception as error:
        fact["error"] = type(error).__name__
        return
    assert CANARY in text
    fact["input"], fact["output"] = usage.prompt_tokens, usage.completion_tokens
    try:
        fact["cost"] = sum(litellm.cost_per_token(model, fact["input"], fact["output"]))
    except Exception:
        fact["cost"] = None  # LiteLLM knows no price of the model


async def main() -> None:
    litellm.cache = Cache(type="local")
    if sys.argv[1:] == ["lines"]:
        litellm.callbacks = [GenericAPILogger(log_format="ndjson", max_retries=4, retry_delay=0.2)]
    else:
        litellm.success_callback = ["generic_api"]
        litellm.failure_callback = ["generic_api"]
    mini: dict[str, Any] = {"model": "openai/gpt-4o-mini", "caching": False}
    await call("success", **mini, mock_response=ANSWER, metadata={"user_api_key_org_id": ORG_NAME})
    await call("success", "anthropic/claude-sonnet-4-5", caching=False, mock_response=ANSWER, user="end-user")
    await call("stream", **mini, mock_response=ANSWER, stream=True, stream_options={"include_usage": True})
    await call("success", "openai/gpt-4o", caching=True, mock_response=ANSWER)
    await asyncio.sleep(0.5)  # LiteLLM fills its cache in the background
    await call("cached", "openai/gpt-4o", caching=True, mock_response=ANSWER)
    await call("success", "openai/a-model-of-our-own", caching=False, mock_response=ANSWER)
    await call("failure", **mini, mock_response=Exception(f"The provider said: {CANARY}"))
    await call("throttled", **mini, mock_response="litellm.RateLimitError")
    await call("timeout", **mini, mock_response=ANSWER, mock_timeout=True, timeout=0.05)
    print(json.dumps(told), flush=True)
    await asyncio.to_thread(sys.stdin.read)


asyncio.run(main())
