"""Streams: inverted residuals a few channels at a time, forward and backward, so that their wide tensors are never whole."""
