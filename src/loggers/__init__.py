"""Where metrics go, metrics.csv in the run folder and W&B, and how they are read back and drawn."""
