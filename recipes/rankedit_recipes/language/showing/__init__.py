"""Results as tables, plots and a report."""
