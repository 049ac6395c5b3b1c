"""fedact from Python: a fleet in one call, and the models of runs."""
