"""Makes the PrometheusRule of deploy/kubernetes from deploy/prometheus/rules.yml.

``python -m tests.support.prometheus_rule`` writes the file, and lists it in the component's kustomization.
While there are no rules, there is no file either.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import yaml

ROOT: Final = Path(__file__).resolve().parents[2]
RULES: Final = ROOT / "deploy/prometheus/rules.yml"
COMPONENT: Final = ROOT / "deploy/kubernetes/components/monitoring"
PAGE: Final = COMPONENT / "prometheus-rule.yaml"
_OPENING: Final = """# Made from deploy/prometheus/rules.yml by `python -m tests.support.prometheus_rule`.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: spendstream
  labels: {app.kubernetes.io/name: spendstream, app.kubernetes.io/part-of: spendstream}
spec:
"""


def text() -> str | None:
    """The file as it must be; None: there are no rules."""
    if not RULES.exists():
        return None
    groups = {"groups": yaml.safe_load(RULES.read_text())["groups"]}
    lines = yaml.safe_dump(groups, sort_keys=False, allow_unicode=True, width=1000).splitlines()
    return _OPENING + "".join(f"  {line}\n" for line in lines)


def written() -> str | None:
    """The file as it is; None: it is not there."""
    return PAGE.read_text() if PAGE.exists() else None


def main() -> None:
    """Write the file, and list it."""
    if (wanted := text()) is None:
        return
    PAGE.write_text(wanted)
    kustomization = COMPONENT / "kustomization.yaml"
    if PAGE.name not in kustomization.read_text():
        kustomization.write_text(f"{kustomization.read_text()}  - {PAGE.name}\n")


if __name__ == "__main__":
    main()
