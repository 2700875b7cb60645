"""One step of decoding: the batch, its cache, where each token leaves, what it still owes, and which token is next."""
