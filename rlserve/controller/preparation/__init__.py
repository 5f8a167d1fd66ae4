"""What is found, made and checked before any worker process is started."""
