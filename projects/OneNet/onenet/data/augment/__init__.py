"""Augmentations by name: what INPUT.AUGMENTATIONS can list."""
