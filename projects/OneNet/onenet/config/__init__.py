"""Config keys, the rules of their values, and the objects that they describe."""
