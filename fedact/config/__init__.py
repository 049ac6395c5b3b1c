"""The frozen values that say what is to be done, and how they are written, parsed, seeded and refused; no torch."""
