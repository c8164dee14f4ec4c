"""Makes the PrometheusRule of deploy/kubernetes from deploy/prometheus/rules.yml.

``python -m tests.support.prometheus_rule`` writes the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import yaml

ROOT: Final = Path(__file__).resolve().parents[2]
RULES: Final = ROOT / "deploy/prometheus/rules.yml"
PAGE: Final = ROOT / "deploy/kubernetes/components/monitoring/prometheus-rule.yaml"
_OPENING: Final = """# Made from deploy/prometheus/rules.yml by `python -m tests.support.prometheus_rule`.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: spendstream
  labels: {app.kubernetes.io/name: spendstream, app.kubernetes.io/part-of: spendstream}
spec:
"""


def text() -> str:
    """The file as it must be."""
    groups = {"groups": yaml.safe_load(RULES.read_text())["groups"]}
    lines = yaml.safe_dump(groups, sort_keys=False, allow_unicode=True, width=1000).splitlines()
    return _OPENING + "".join(f"  {line}\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(text())
