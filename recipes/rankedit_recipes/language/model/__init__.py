"""A causal language model of transformers, looked into and run: blocks, projections, tokens, hooks.

Nothing here knows what an edit is for: requests come in as texts and places in them, and vectors
that were read or given go out. What such vectors are searched for is in `searching`; measuring what
a model says is in `evaluating`. No model family is named: structure is found by running.
"""
