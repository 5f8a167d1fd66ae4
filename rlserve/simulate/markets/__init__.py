"""How many spot machines there are to be had over time, from traces or by chance."""
