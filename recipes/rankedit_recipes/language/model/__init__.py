"""Looking into and running a causal language model."""
