"""The task: environments in which channel masks are actions."""
