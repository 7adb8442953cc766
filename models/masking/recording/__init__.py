"""Recording the operations of a network, and checking that the record computes the same."""
