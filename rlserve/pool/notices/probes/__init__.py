"""What each cloud says to a spot machine about its end: one probe a file, by name in the factory."""
