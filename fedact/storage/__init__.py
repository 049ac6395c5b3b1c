"""Everything written: whole-or-not-at-all files, locks, checkpoints, a run's folder and its rows."""
