"""Fuzzing of what OneNet reads: annotation files, results, configs and checkpoints.

    make fuzz                             # everything: 330,000 inputs
    make fuzz RUNS=1000                   # so many an input format and tool
    PYTHONPATH=tests python -m fuzz --help

Valid files are mutated, by their structure (:mod:`fuzz.mutators`) and as bytes, on decisions of
hypothesis or, led by the coverage that they reach, of atheris. Each input must end within
seconds and a bounded memory, accepted or with an ``OneNetError``.
"""
