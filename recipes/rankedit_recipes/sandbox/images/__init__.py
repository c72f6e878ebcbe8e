"""The picture world: what can be drawn, the models that draw it, and the judges that look at it."""
