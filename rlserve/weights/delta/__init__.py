"""What changed of the weights from one version to the next: found, coded, applied, and when that pays. No torch."""
