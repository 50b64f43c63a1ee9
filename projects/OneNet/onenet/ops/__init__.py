"""Operators: what is fast, beside its plain formula."""
