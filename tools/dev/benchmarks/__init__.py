"""The parts of ``tools/dev/benchmark.py``, each a module with ``run(options) -> [Comparison]``."""
