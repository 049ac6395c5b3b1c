"""Commands in the terminal: run, print, write; one file a command."""
