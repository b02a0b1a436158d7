"""Bytes: files, members of archives, object stores."""
