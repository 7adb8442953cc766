"""Recording what a network does, and proving that the record is the network."""
