"""What a network is for: kinds of targets, with their losses and metrics."""
