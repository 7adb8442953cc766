"""Every image of a split once: agents, their masks, controls."""
