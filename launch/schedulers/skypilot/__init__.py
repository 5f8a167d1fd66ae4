"""SkyPilot: a managed job, with a task for each group of slots, on whatever clouds it is set up for."""
