"""What the commands beside a suite's run do: one model, cards, lists, the doctor."""
