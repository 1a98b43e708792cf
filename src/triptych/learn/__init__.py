"""Learning rules as pure functions of tensors."""
