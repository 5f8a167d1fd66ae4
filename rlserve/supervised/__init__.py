"""Data sets that are learned from as they are: read, tokenised and handed out batch by batch."""
