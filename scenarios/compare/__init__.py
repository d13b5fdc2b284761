"""`fedkd compare`: methods x splits x seeds, each an ordinary run, and one table of all."""
