"""Architectures: plain nn.Modules, keyword arguments in, logits out.

They know no trainer, device or config, and nothing else of this project.
"""
