"""The commands of ``spendstream``, a file a group."""
