"""The data set as it is written, whichever kind of file it is in."""
