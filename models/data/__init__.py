"""Images: data sets in memory, their splits, readers of files, downloads."""
