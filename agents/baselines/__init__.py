"""What an agent has to beat: cheap, static and published baselines."""
