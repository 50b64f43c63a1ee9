"""Modules that several programs of tools/ share."""
