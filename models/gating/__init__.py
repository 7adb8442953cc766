"""What decides a mask: features, gate policies, static masks, gated layers."""
