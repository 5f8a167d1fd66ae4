"""How many replicas a server has: policies as pure functions, and what carries their decisions out."""
