"""The kit for text-to-image pipelines: texts, words, targets, running a denoiser, statistics."""
