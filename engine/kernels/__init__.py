"""Small fused operations around the matrix products: norms, activation, sampling."""
