"""Windows, crops and masks: drawn as numbers, applied as pure functions."""
