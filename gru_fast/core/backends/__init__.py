"""Who does the passes on which device: the compiled kernels, or plain PyTorch."""
