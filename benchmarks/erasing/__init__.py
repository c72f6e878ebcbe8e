"""Erasing concepts on the sandbox, and what an edit costs at full size."""
