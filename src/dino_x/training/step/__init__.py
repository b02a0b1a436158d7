"""One exact optimizer step, and what it looks at."""
