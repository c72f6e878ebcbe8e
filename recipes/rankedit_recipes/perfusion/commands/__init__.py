"""The command line `rankedit perfusion`."""
