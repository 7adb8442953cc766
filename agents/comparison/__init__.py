"""Agents side by side over seeds."""
