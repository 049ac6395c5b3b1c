"""Bytes, seconds, operations and gradient error of one training step."""
