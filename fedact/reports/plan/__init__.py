"""Tables and figures of plans."""
