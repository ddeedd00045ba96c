"""What happens to a run: its folder, checkpoints, signals, faults and exit codes.

Nothing here knows what kind of data is trained on.
"""
