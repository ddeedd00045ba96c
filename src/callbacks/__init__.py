"""What happens during training besides the steps; each is a section of the config."""
