"""The processes that share a run."""
