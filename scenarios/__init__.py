"""What you run: scenario files, and the programs that run them."""
