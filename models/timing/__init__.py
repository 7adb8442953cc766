"""Seconds on this machine: dense forms, latency tables, profiles."""
