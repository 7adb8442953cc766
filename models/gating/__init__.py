"""Decisions of masks: features, gate policies, static masks, gated layers."""
