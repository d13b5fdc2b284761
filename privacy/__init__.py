"""What may leave a client, what it costs, and what leaked anyway."""
