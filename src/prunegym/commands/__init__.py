"""The commands of ``prunegym``, a module for each part of the work."""
