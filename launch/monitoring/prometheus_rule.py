"""Write the files ``prometheus_rule.yaml``, the alerts as the Prometheus operator takes them.

python launch/monitoring/prometheus_rule.py
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
ALERTS = (FOLDER / "serving" / "serving_alerts.yaml", FOLDER / "training" / "run_alerts.yaml")
HEAD = """\
# Made from {file} by prometheus_rule.py: change that.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: rlserve-{name}
spec:
"""


def prometheus_rule(alerts: Path) -> str:
    """A file of alerts, one level deeper."""
    text = alerts.read_text(encoding="utf-8")
    lines = text[text.index("groups:") :].splitlines()
    head = HEAD.format(file=alerts.name, name=alerts.parent.name)
    return head + "".join(f"  {line}".rstrip() + "\n" for line in lines)


if __name__ == "__main__":
    for path in ALERTS:
        path.with_name("prometheus_rule.yaml").write_text(prometheus_rule(path), encoding="utf-8")
