"""Tracing a CNN, finding and verifying its gates, masking channels, counting what is left."""
