"""What people look at: the page about a run, and runs side by side."""
