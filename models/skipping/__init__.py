"""Execution of a masked CNN without its masked channels: in the compiled kernel, or as smaller convolutions."""
