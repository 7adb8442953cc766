"""Running a masked CNN so that masked channels cost no time: the compiled kernel, or smaller convolutions in torch."""
