"""Image files, folders and archives of them, array files, downloads."""
