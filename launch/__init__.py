"""Getting a run onto machines: this machine, a Ray cluster."""
