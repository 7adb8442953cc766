"""Files: weights, model files, int8 weights, fingerprints, folders of runs."""
