"""Tracing a CNN, finding and verifying its gates, masking channels, counting MACs and weights."""
