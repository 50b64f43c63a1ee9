"""Assignment of samples to targets, and the losses: the method."""
