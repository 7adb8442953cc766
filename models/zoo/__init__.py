"""Networks by name: plain torch modules without masks."""
