"""The machine's accelerator and its energy; `gpu` is the one place that calls `torch.cuda`."""
