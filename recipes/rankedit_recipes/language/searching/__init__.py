"""From requests to keys and values: contexts, the search for values, sharing them between blocks.

What comes out, `Facts`, depends on each request alone, so that facts can come and go. Nothing here
solves for an edit: that is `Settings.solve`, which is asked only for what a lower block takes over.
"""
