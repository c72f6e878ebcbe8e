"""What a model says, edited or not: scores, likelihoods, locality, writing, and where facts sit.

It works on any causal model and knows no method of editing, so that other people's edits are
measured alike. How results are drawn and printed is in `showing`; reading cases is in `reading`.
"""
