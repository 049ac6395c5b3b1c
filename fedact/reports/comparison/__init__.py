"""Tables, figures and the one-file report of runs beside each other."""
