"""Finding the values that make a model say something else."""
