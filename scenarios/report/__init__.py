"""A run's report: one HTML page that opens offline, and its plots."""
