"""Names that mean the same in every command."""

SANDBOX = "sandbox"
"""The model that comes with the package."""
