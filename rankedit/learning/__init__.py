"""Values learned by gradient."""
