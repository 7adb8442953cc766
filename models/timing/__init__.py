"""Measurements of time on this machine: dense forms, latency tables, profiles."""
