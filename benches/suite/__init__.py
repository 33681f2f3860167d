"""The parts of `gpu_suite.py`: a module a step, each a process of its own (``python -m suite.NAME``), and what they share."""
