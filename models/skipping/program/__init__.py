"""A CNN as the few layers that execution paths run."""
