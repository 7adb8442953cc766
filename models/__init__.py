"""The CNN side, plain torch: zoo, data, gates, masks and cost."""
