"""What happens during training besides the steps: checkpoints, guards, averages, progress, pictures.

Each is a section of the config.
"""
