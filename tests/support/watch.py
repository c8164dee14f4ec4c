"""What `deploy/prometheus`, `deploy/grafana` and the runbook hold, and which series they ask for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import promql_parser
import yaml

ROOT: Final = Path(__file__).resolve().parents[2]
PROMETHEUS: Final = ROOT / "deploy/prometheus"
RULES: Final = PROMETHEUS / "rules.yml"
RULE_TESTS: Final = (PROMETHEUS / "rules_test.yml", PROMETHEUS / "rules_long_test.yml")
GRAFANA: Final = ROOT / "deploy/grafana"
DASHBOARDS: Final = sorted((GRAFANA / "dashboards").glob("*.json"))
RUNBOOK: Final = ROOT / "docs/runbook"

_GRAFANA_TIMES: Final = {"$__rate_interval": "5m", "$__interval": "1m", "$__range": "1h"}


@dataclass(frozen=True, slots=True)
class Expression:
    """One PromQL expression, and where it stands."""

    place: str
    text: str
    alerts: bool = False

    @property
    def may_be_empty(self) -> bool:
        """May the expression find nothing although its series are there?"""
        return self.alerts or " offset " in self.text

    def __str__(self) -> str:
        return self.place


def rules() -> list[dict[str, Any]]:
    """Every rule of the rules file, in order; each records or alerts."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def panels(dashboard: Path) -> list[dict[str, Any]]:
    """The panels of a dashboard, rows among them."""
    found: list[dict[str, Any]] = json.loads(dashboard.read_text())["panels"]
    return found


def expressions() -> list[Expression]:
    """Every PromQL expression: of the rules, of the dashboards and of the runbook's pages."""
    found = []
    for rule in rules():
        name = rule.get("alert") or rule["record"]
        kind = rule.get("labels", {}).get("severity", "recorded")
        found.append(Expression(f"{name} ({kind})", rule["expr"], alerts="alert" in rule))
    for dashboard in DASHBOARDS:
        for panel in panels(dashboard):
            for target in panel.get("targets", ()):
                if "expr" in target:
                    text = target["expr"]
                    for variable, value in _GRAFANA_TIMES.items():
                        text = text.replace(variable, value)
                    found.append(Expression(f"{dashboard.stem}: {panel['title']} {target['refId']}", text))
    for page in sorted(RUNBOOK.glob("*.md")):
        for block in re.findall(r"^```promql\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            for number, line in enumerate(block.splitlines()):
                found.append(Expression(f"{page.stem}: line {number}", line))
    return found


def selectors(text: str) -> list[str]:
    """The series that an expression asks for, each as a selector without range and offset.

    Example: ``rate(a{b="c"}[5m]) / d offset 1w`` asks for ``a{b="c"}`` and ``d{}``.

    Raises:
        ValueError: the expression is no PromQL.
    """
    return list(_selectors(promql_parser.parse(text)))


def _selectors(node: Any) -> Iterator[str]:
    match type(node).__name__:
        case "VectorSelector":
            matchers = ",".join(
                f"{one.name}{_OPERATORS[str(one.op)]}{json.dumps(one.value)}"
                for one in node.matchers.matchers
            )
            yield f"{node.name or ''}{{{matchers}}}"
        case "MatrixSelector":
            yield from _selectors(node.vector_selector)
        case "AggregateExpr":
            yield from _selectors(node.expr)
            if node.param is not None:
                yield from _selectors(node.param)
        case "BinaryExpr":
            yield from _selectors(node.lhs)
            yield from _selectors(node.rhs)
        case "Call":
            for argument in node.args:
                yield from _selectors(argument)
        case "ParenExpr" | "UnaryExpr" | "SubqueryExpr":
            yield from _selectors(node.expr)
        case "NumberLiteral" | "StringLiteral":
            return
        case other:
            raise AssertionError(f"a node of PromQL that this walk does not know: {other}")


_OPERATORS: Final = {
    "MatchOp.Equal": "=",
    "MatchOp.NotEqual": "!=",
    "MatchOp.Re": "=~",
    "MatchOp.NotRe": "!~",
}


def metric(selector: str) -> str:
    """The name of the metric that a selector asks for."""
    return selector.partition("{")[0]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
