"""Images: data sets in memory or read as they are needed, their splits, targets and transform, files, downloads."""
