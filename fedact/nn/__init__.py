"""Memory-saving layers, the surgery that installs and removes them, and the torch.fx analysis of a model's graph."""
