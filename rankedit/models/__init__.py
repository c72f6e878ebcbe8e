"""Projections inside models: find them, run them, attach edits to them and take them out."""
