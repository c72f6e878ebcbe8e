"""Edits and statistics on disk; LoRA files of other programs."""
