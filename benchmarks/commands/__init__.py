"""Commands that do not run a suite: one model, method cards, lists, publishing, checks of results and machine."""
