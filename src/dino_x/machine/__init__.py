"""The machine: its device, its memory."""
