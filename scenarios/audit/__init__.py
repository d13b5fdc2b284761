"""Audits of runs: what leaked, to whom, and how that compares with what was promised."""
