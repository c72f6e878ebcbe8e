"""The command line `rankedit concepts`."""
