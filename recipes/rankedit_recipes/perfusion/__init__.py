"""Perfusion: teach a text-to-image model a new thing from a few photos."""
