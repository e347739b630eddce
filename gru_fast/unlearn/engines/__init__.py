"""How gradients and their shards are reached: DDP, FSDP2."""
