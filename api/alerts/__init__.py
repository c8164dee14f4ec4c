"""``spendstream alerts``: the process that judges budgets after each flush, and sends what is to be said.

`judge` is one transaction, `watch` says which orgs must be judged, `deliver` sends, and `service` is what the
process is made of. The rules are those of `api.budgets`.
"""
