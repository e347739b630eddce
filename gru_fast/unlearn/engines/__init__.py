"""How gradients and their shards are reached: plain, FSDP2."""
