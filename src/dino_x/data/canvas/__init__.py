"""What an image is kept as, in memory and on disk."""
