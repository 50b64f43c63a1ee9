"""Data sets, annotations and images."""
