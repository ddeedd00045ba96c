"""Series: stamps cleaned and put on a regular grid once; windows taken by the batch from one tensor.

`make remove KIND=series` takes this kind out of a fork.
"""
