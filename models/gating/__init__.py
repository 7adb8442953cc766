"""What decides masks: features, gate policies, static masks, gated layers."""
