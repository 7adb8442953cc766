"""Comparison of agents over seeds."""
