"""Where images are read from as they are needed: files, arrays on disk, data sets of others."""
