"""The learners: policies, recipes, baselines and evaluation."""
