"""The picture world."""
