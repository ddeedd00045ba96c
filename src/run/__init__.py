"""What happens to a run: its folder, checkpoints, signals, faults and exit codes; no kind of data is known here."""
