"""Server, clients and the ways between them; the only place that imports flwr."""
