"""What a training step takes: operations, memory, time and money. It knows torch, and what is passed in."""
