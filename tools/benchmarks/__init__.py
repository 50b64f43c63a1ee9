"""The parts of ``tools/benchmark.py``: each a module with ``run(options) -> [Comparison]``."""
