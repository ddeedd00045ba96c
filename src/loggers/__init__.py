"""Where metrics go: metrics.csv in the run folder, and W&B.

And how they are read back and drawn.
"""
