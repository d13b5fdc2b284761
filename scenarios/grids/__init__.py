"""What carries the messages; the ServerApp and the ClientApp are the same on every grid."""
