"""What a run has measured of itself: readings come in as they happen, figures that a decision can rest on go out."""
