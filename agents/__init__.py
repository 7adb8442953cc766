"""The learners: policies for Stable-Baselines3, recipes, training, baselines, evaluation, comparison."""
