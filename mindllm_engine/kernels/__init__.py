"""Floor 1: operators, one file each: the PyTorch reference, the kernels, and one public function."""
