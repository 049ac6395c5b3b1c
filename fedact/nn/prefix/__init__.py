"""The frozen prefix, the part of a model before its first trained layer: split off, run in chunks, its outputs stored."""
