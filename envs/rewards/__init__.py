"""Rewards: outcomes of episodes, accuracy terms, costs, and rewards by name."""
