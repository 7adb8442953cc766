"""Networks by name: plain torch modules that know nothing of masks."""
