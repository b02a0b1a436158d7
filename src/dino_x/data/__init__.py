"""Images from files to batches: readers, index, sampler, cache, loader."""
