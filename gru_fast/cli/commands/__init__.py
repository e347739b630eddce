"""One file a command; `gru_fast.cli` says what each must have."""
