"""The parts of tools/ablate.py: reading the spec, running the trainings, writing the tables."""
