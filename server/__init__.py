"""The Flower ServerApp: rounds, validation, checkpoints, events."""
