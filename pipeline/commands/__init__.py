"""The commands of ``spendstream``, a file for each group."""
