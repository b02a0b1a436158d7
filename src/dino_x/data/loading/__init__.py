"""From an index to batches: sampler, neighbours, loader."""
