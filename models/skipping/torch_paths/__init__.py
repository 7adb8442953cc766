"""Execution paths in plain torch."""
