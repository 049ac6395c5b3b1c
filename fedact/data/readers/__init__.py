"""One file a data set: what lies on disk, or in a package, to a Source of examples."""
