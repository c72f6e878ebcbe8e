"""The command line `rankedit language`."""
