"""Images: read, cleaned, packed once; augmented and normalized by the batch, on the device.

`make remove KIND=images` takes this kind out of a fork.
"""
