"""The result of a race for people (text and Markdown) and for programs (JSON)."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.bench.latency import Latency
from pipeline.bench.race import Options, Result


def machine() -> dict[str, Any]:
    """Describe the machine of the measurement, and how busy it was with other work."""
    model = "unknown"
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "processor": model,
        "python": platform.python_version(),
        "load_1m": round(os.getloadavg()[0], 2),
    }


def record(options: Options, results: Sequence[Result], found_on: dict[str, Any]) -> dict[str, Any]:
    """The JSON report."""
    shape = options.shape
    return {
        "machine": found_on,
        "events": shape.events,
        "orgs": shape.orgs,
        "models": shape.models,
        "clients": shape.clients,
        "copies": options.copies,
        "repeat": options.repeat,
        "contenders": [
            {
                "name": result.contender.name,
                "about": result.contender.about,
                "partitions": result.partitions,
                "processes": result.processes,
                "exact": _exact(result),
                "skipped": result.skipped,
                "faults": result.faults,
                "events_per_s": round(result.rate()) if result.outcomes else None,
                "events_per_cpu_s": round(result.rate_by_cpu()) if result.outcomes else None,
                "spread": round(result.spread(), 3) if result.outcomes else None,
                "runs": [outcome.record() for outcome in result.outcomes],
            }
            for result in results
        ],
    }


def _exact(result: Result) -> bool | None:
    if result.faults:
        return False
    if not result.outcomes or result.outcomes[0].answer is None:
        return None
    return True


def table(options: Options, results: Sequence[Result], found_on: dict[str, Any]) -> str:
    """A Markdown table. Ratios compare with the first row of `committed`, or with `core` if there is none."""
    shape = options.shape
    lines = [
        f"{found_on['date'][:10]}, {found_on['cores']} cores ({found_on['processor']}), Python"
        f" {found_on['python']}, load {found_on['load_1m']} at the start. {shape.events} events of"
        f" {shape.orgs} orgs x {shape.models} models x {shape.clients} clients; medians of {options.repeat}.",
        "",
        "| contender | partitions | events/s | spread | events per CPU s | peak MiB | x slower | exact |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    ours = {result.contender.name: result.rate() for result in reversed(results) if result.outcomes}
    best = ours.get("committed") or ours.get("core")
    lines.extend(_lines(results, best))
    return "\n".join(lines) + "\n"


def _lines(results: Sequence[Result], best: float | None) -> Iterator[str]:
    for result in results:
        about = f"{result.contender.about} (`{result.contender.name}`)"
        if not result.outcomes:
            reason = result.skipped or (result.faults and result.faults[-1].splitlines()[-1]) or "did not run"
            yield f"| {about} | {_layout(result)} | {reason} | | | | | {'' if result.skipped else '**no**'} |"
            continue
        exact = {True: "yes", False: "**no**", None: "-"}[_exact(result)]
        ratio = f"{best / result.rate():.2f}" if best else ""
        peak = max(outcome.peak_mib for outcome in result.outcomes)
        yield (
            f"| {about} | {_layout(result)} | {result.rate():,.0f} | {result.spread():.0%}"
            f" | {result.rate_by_cpu():,.0f} | {peak:,.0f} | {ratio} | {exact} |"
        )


def _layout(result: Result) -> str:
    """The layout of a result as text: how many partitions and how many worker processes."""
    if result.partitions is None:
        return "-"
    by = f" by {result.processes} processes" if result.processes not in (None, 1) else ""
    return f"{result.partitions}{by}"


def latency_record(found: Sequence[Latency], found_on: dict[str, Any]) -> dict[str, Any]:
    return {"machine": found_on, "latency": [asdict(one) for one in found]}


def latency_table(found: Sequence[Latency], found_on: dict[str, Any]) -> str:
    lines = [
        f"{found_on['date'][:10]}, {found_on['cores']} cores ({found_on['processor']}), Python"
        f" {found_on['python']}, load {found_on['load_1m']} at the start.",
        "",
        "| events/s | published | published/s | lost | p50 s | p95 s | p99 s | worker CPU s | API CPU s |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines.extend(
        f"| {one.rate:,.0f} | {one.published:,} | {one.published_per_s:,.0f} | {one.lost} | {one.p50_s:.2f}"
        f" | {one.p95_s:.2f} | {one.p99_s:.2f} | {one.worker_cpu_s:.1f} | {one.api_cpu_s:.1f} |"
        for one in found
    )
    return "\n".join(lines) + "\n"
