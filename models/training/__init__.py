"""Training by gradient: CNNs, imitation, gates with and without the CNN, MAC targets."""
