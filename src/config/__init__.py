"""Files and flags, read and checked as plain data without torch, and then made into objects.

What a config may say is read here, once, from the signatures of the classes that it names.
"""
