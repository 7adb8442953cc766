"""Sources of images that are read when they are needed: files, arrays on disk, data sets of other libraries."""
