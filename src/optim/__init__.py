"""Optimizers and schedules that torch lacks. A config names torch's own in the same way."""
