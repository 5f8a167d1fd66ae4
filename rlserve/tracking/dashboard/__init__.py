"""Runs in a browser: a server of this machine alone, which reads the runs' folders and changes nothing."""
