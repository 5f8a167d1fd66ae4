"""The model in memory: its parameters, and the layers that compute with them."""
