"""The study of editing a real model, piece by piece; `benchmarks/real_model.py` runs it."""
