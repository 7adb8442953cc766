"""Results that can be checked: runs are evaluated again, and only valid ones are ranked."""
