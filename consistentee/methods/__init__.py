"""Method, the interface; and ConsistentEE, the core method, with its parts."""
