"""Edits over time in a folder, each of which can be undone."""
