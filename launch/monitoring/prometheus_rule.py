"""Write ``prometheus_rule.yaml``, the alerts as the Prometheus operator takes them, from ``serving_alerts.yaml``.

python launch/monitoring/prometheus_rule.py
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
HEAD = """\
# Made from serving_alerts.yaml by prometheus_rule.py: change that.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: rlserve-serving
spec:
"""


def prometheus_rule(alerts: str) -> str:
    """A file of alerts, one level deeper."""
    lines = alerts[alerts.index("groups:") :].splitlines()
    return HEAD + "".join(f"  {line}".rstrip() + "\n" for line in lines)


if __name__ == "__main__":
    text = (FOLDER / "serving_alerts.yaml").read_text(encoding="utf-8")
    (FOLDER / "prometheus_rule.yaml").write_text(prometheus_rule(text), encoding="utf-8")
