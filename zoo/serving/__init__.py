"""`zoo serve`: detectors behind HTTP, safe to put on a network."""
