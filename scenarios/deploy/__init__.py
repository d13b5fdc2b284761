"""Real servers and clients: a folder for each side, the processes in it, and what they do."""
