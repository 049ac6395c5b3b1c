"""What a run stands on, and one client's local training under a plan."""
