"""LightningModules: a network with its loss, metrics, optimizer and schedule; a file for each kind of problem."""
