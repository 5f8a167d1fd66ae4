"""The manager: which slot trains and which rolls out, decided by pure policies."""
