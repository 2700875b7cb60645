"""Records, keys and folders: what a run leaves behind, and what that depends on."""
