"""From photos to a concept."""
