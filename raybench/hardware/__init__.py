"""The machine's accelerator and its energy; only `gpu` calls `torch.cuda`."""
