"""The validation of src.diagnose: `python -m benchmarks.diagnose`."""
