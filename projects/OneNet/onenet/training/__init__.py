"""What both engines do in training."""
