"""Reinforcement learning: recipes, the policy for SB3, training."""
