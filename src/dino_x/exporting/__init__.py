"""A run's model for other tools: written, read back and compared, with a model card."""
