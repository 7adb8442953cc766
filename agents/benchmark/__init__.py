"""Suites of comparisons: run, checked, reported."""
