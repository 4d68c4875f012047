"""Training: trainers, their default setup, and checkpoints from which a run goes on exactly."""
