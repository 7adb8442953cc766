"""Reports of benchmarks: one page, pictures and CSV files."""
