"""What is asked of a model, and how the answers are kept. No other room runs a model to judge it."""
