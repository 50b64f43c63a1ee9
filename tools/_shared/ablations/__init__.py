"""The parts of tools/ablate.py: what is asked for, the runs, and the tables."""
