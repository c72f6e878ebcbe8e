"""Concepts in a pipeline: put in, merged, adjusted, explained, exported."""
