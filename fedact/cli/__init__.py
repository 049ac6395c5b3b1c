"""What each command does in the terminal, one file a command."""
