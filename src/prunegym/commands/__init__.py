"""The commands of ``prunegym``: each in the module that has its name."""
