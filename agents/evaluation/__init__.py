"""Evaluation of agents on every image of a split, with controls."""
