"""Webhooks: where an org is told of its alerts.

`sealed` keeps addresses and secrets encrypted, `addresses` says which addresses may be called, `orders` reads
bodies, `messages` writes what is sent, and `routes` has the handlers. `api.alerts.deliver` sends.
"""
