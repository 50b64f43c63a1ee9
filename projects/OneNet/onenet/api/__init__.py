"""What users call: the four lines of Python, and the programs of the command ``onenet``."""
