"""Statistics of what projections read, from one pass of a model over data."""
