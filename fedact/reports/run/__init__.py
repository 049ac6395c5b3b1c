"""Tables and figures of one run, while it goes and at its end."""
