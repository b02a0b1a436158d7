"""The options of a run: their meaning, their presets, and how they are resolved."""
