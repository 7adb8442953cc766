"""PruneGym."""
