"""LightningModules: a network with its loss, metrics, optimizer and schedule.

One file for each kind of problem, and what they share.
"""
