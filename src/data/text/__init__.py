"""Text: read, cleaned, made tokens and packed once; taken by the batch in windows.

`make remove KIND=text` takes this kind out of a fork.
"""
