"""Numbers about an engine: gauges, totals, histograms of latencies."""
