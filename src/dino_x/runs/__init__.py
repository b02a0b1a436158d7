"""The RUN folder: settings, checkpoints, files that grow."""
