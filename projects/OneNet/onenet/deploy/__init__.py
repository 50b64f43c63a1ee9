"""Exported models, and their runtime without torch."""
