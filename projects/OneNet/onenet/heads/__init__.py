"""Heads: from feature maps to predictions for every sample."""
