"""One pure step, the loop around it, optimizers, checkpoints, tracking."""
