"""What an episode pays: outcomes, accuracy terms, costs, rewards."""
