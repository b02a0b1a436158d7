"""One image format a file, and the registry that tells them apart."""
