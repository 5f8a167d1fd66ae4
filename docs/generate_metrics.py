"""Write ``metrics.md`` from ``rlserve.tracking.names`` and ``rlserve.tracking.vllm_names``.

python docs/generate_metrics.py
"""

from __future__ import annotations

from pathlib import Path

from rlserve.tracking.names import METRICS
from rlserve.tracking.vllm_names import VLLM_METRICS, VllmMetric

TARGET = Path(__file__).with_name("metrics.md")
HEADER = """\
# Metrics

Every metric of a run: one line a step in `metrics.jsonl`, and the same names in wandb and TensorBoard. Written by
`docs/generate_metrics.py` from `rlserve/tracking/names.py`: change them there. Braces list alternatives:
`critic/score/{mean,max,min}` are three metrics. Training has verl's names and the engine vLLM's; TRL's name for the
same quantity follows in brackets. The rest is named by rlserve. (PPO) and (GRPO) stand before metrics that only
[that algorithm](algorithms.md) has; without a critic `critic/` holds what verl puts there for every algorithm.

With `tracking.prometheus_port=9400`, Prometheus finds the newest of them at `http://127.0.0.1:9400/metrics`, as
`rlserve_critic_score_mean` and so on, and live the numbers of each engine
[under vLLM's names](#vllms-names) and labels, `model_name` and `engine` (the slot).

| metric | meaning |
|---|---|
"""
VLLM_HEADER = """
## Dashboard and alerts

`launch/monitoring/training/grafana_runs.json` is a dashboard of runs (Dashboards → New → Import): training, slots,
growing within a budget, runs that share a cluster, costs. `launch/monitoring/training/run_alerts.yaml` has alerts: a
run that stands still, workers lost, a budget that is spent, slots that were asked for and hold the budget, an hourly
budget that is too small, slots of a run's share that others have not given back. Tests hold both to this page.
Prometheus takes them with

```yaml
rule_files: [run_alerts.yaml]
scrape_configs:
  - job_name: rlserve-runs
    static_configs:
      - targets: ["127.0.0.1:9400"]    # a run each
```

and on Kubernetes [by itself](clusters.md#metrics-of-runs).

## vLLM's names

All that vLLM 0.33's engine exports, and what there is of it here, with its types, labels and the bounds of its
histograms. A server has them at `/metrics` ([serving](serving.md#numbers)), a run at `tracking.prometheus_port`;
(server) marks those that a server alone measures. Names of counters end in `_total` there. All have the labels
`model_name` and `engine`, which is the replica, but for refused requests, which have the model alone; `{…}` has further
ones. With vLLM each of the `n` samples of a request counts as one, and so it does here in what is told of samples.

| vLLM's metric | type | here |
|---|---|---|
"""


def render() -> str:
    """The whole page."""
    of_run = "".join(f"| `{name}` | {meaning} |\n" for name, meaning in METRICS.items())
    return HEADER + of_run + VLLM_HEADER + "".join(map(_vllm_row, VLLM_METRICS.items()))


def _vllm_row(named: tuple[str, VllmMetric]) -> str:
    name, metric = named
    labels = [label for label in metric.labels if label not in ("model_name", "engine")]
    told = f" {{{', '.join(labels)}}}" if labels and metric.meaning else ""
    here = f"{metric.meaning}{' (server)' if metric.server_only else ''}" if metric.meaning else f"– {metric.missing}"
    return f"| `{name}{told}` | {metric.kind} | {here} |\n"


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
