"""Tasks of networks: kinds of targets, with their losses and metrics."""
