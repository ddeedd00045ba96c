"""Architectures: plain nn.Modules, keyword arguments in, logits out. They know nothing else of this project."""
