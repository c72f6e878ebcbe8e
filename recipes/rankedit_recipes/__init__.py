"""Recipes: published methods composed from rankedit, and the sandbox they run on."""
