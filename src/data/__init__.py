"""What every kind of data shares: batches, their order, workers, the cache of prepared data, the report.

A folder here is a kind of data; kinds do not know each other, and each can be removed.
"""
