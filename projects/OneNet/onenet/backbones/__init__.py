"""Backbones of the embedded engine."""
