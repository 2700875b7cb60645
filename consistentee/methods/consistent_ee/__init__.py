"""ConsistentEE for instances and for tokens: fixed prices, curve, ladder, distilled and tuned exits."""
