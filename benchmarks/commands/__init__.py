"""Commands that do not run a suite: one model, lists, tables of papers, publishing, checks of results and machine."""
