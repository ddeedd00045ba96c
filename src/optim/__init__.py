"""Optimizers and schedules that torch lacks, and the groups of parameters that they get.

A config names torch's own in the same way.
"""
