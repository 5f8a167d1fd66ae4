"""What goes over HTTP: requests and their checks, errors."""
