"""What the command lines of the recipes share. Nothing here imports torch when it is imported."""
