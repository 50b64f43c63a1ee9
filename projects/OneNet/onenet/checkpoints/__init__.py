"""Checkpoints: whole files, safely read."""
