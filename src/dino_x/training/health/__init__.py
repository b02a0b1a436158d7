"""Whether a run is healthy, while it trains."""
