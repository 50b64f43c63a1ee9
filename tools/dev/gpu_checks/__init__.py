"""The steps of ``gpu_check.py``, each a process of its own."""
