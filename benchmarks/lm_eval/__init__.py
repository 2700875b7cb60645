"""Early-exit decoders under lm-evaluation-harness."""
