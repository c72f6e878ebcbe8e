"""What a concept can do, as numbers and as a report."""
