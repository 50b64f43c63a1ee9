"""Checkpoints: written whole and read safely."""
