"""Layers that keep less, the surgery that puts them in and takes them out, and what it asks of a model's graph."""
