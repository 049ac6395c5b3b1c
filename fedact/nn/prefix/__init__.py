"""The frozen prefix: the part of a model before its first trained layer, cut off, run in chunks, its outputs kept."""
