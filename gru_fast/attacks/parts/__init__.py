"""What the attacks are made of."""
